"""Configuration of FG-CLIP 2, read from the published checkpoint's own `config.json`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from rar_mmdet.errors import EncoderLoadError

__all__ = ["Fgclip2Config", "Fgclip2TextConfig", "Fgclip2VisionConfig"]


def _set_sizes(config: PreTrainedConfig, sizes: dict[str, Any], least: dict[str, int]) -> None:
    """Keep the sizes as attributes; each of `least` is a whole number of at least that much."""
    for name, minimum in least.items():
        value = sizes[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise EncoderLoadError(
                f"config.json: {name} must be a whole number of at least {minimum}, got {value!r}. Compare it with the "
                "published file"
            )
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise EncoderLoadError(
            f"config.json: hidden_size={sizes['hidden_size']} must be a multiple of num_attention_heads="
            f"{sizes['num_attention_heads']}. Compare it with the published file"
        )
    for name, value in sizes.items():
        setattr(config, name, value)


_TOWER = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), 1)


class Fgclip2TextConfig(PreTrainedConfig):
    """Sizes of the text tower; defaults are the base model's.

    The constructor is wider than house style allows because its keywords are the keys of a published file.
    `longtext_len` is, where the file does not say it, what training stretched the position table to:
    4 x (positions - `keep_len`) + `keep_len`.
    """

    model_type = "fgclip2_text_model"
    base_config_key = "text_config"

    def __init__(
        self,
        *,
        vocab_size: int = 256000,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 64,
        keep_len: int = 20,
        longtext_len: int | None = None,
        projection_size: int | None = None,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-6,
        **kwargs: Any,  # keys every Hugging Face config may carry, and leftovers that the authors' code never reads
    ) -> None:
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "max_position_embeddings": max_position_embeddings,
            "keep_len": keep_len,
            "projection_size": hidden_size if projection_size is None else projection_size,
        }
        least = {"vocab_size": 1, "max_position_embeddings": 1, "keep_len": 0, "projection_size": 1}
        _set_sizes(self, sizes, _TOWER | least)
        self.longtext_len = 4 * max_position_embeddings - 3 * keep_len if longtext_len is None else longtext_len
        self.hidden_act, self.layer_norm_eps = hidden_act, layer_norm_eps
        super().__init__(**kwargs)


class Fgclip2VisionConfig(PreTrainedConfig):
    """Sizes of the vision tower; defaults are the base model's. `num_patches` is that of the square position table."""

    model_type = "fgclip2_vision_model"
    base_config_key = "vision_config"

    def __init__(
        self,
        *,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        num_patches: int = 256,
        patch_size: int = 16,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-6,
        vision_use_head: bool = True,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "num_channels": num_channels,
            "num_patches": num_patches,
            "patch_size": patch_size,
        }
        _set_sizes(self, sizes, _TOWER | {"num_channels": 1, "num_patches": 1, "patch_size": 1})
        if round(num_patches**0.5) ** 2 != num_patches:
            raise EncoderLoadError(
                f"config.json: num_patches={num_patches} is no square number, but the position table is square. "
                "Compare it with the published file"
            )
        self.hidden_act, self.layer_norm_eps, self.vision_use_head = hidden_act, layer_norm_eps, vision_use_head
        super().__init__(**kwargs)


class Fgclip2Config(PreTrainedConfig):
    """Both towers; image and text vectors have the same length, so the widths of both must be equal.

    Raises:
        EncoderLoadError: a size is impossible, or the towers do not fit together.
    """

    model_type = "fgclip2"
    sub_configs = {"text_config": Fgclip2TextConfig, "vision_config": Fgclip2VisionConfig}

    def __init__(
        self,
        *,
        text_config: dict[str, Any] | Fgclip2TextConfig | None = None,
        vision_config: dict[str, Any] | Fgclip2VisionConfig | None = None,
        initializer_factor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        text, vision = text_config or {}, vision_config or {}
        self.text_config = Fgclip2TextConfig(**text) if isinstance(text, dict) else text
        self.vision_config = Fgclip2VisionConfig(**vision) if isinstance(vision, dict) else vision
        self.initializer_factor = initializer_factor
        widths = {self.text_config.projection_size, self.text_config.hidden_size, self.vision_config.hidden_size}
        if len(widths) != 1:
            raise EncoderLoadError(
                f"config.json: text hidden_size={self.text_config.hidden_size}, text projection_size="
                f"{self.text_config.projection_size} and vision hidden_size={self.vision_config.hidden_size} must be "
                "equal: the image vector has no projection. Compare it with the published file"
            )
        super().__init__(**kwargs)
