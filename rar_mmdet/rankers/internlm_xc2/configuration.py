"""Configuration of InternLM-XComposer2-VL, read from the published checkpoint's own `config.json`."""

import logging
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedConfig

__all__ = ["IXC2Config"]

logger = logging.getLogger(__name__)

# What the authors' code hard-codes and the published config therefore lacks.
PUBLISHED_VISION = {  # CLIP ViT-L/14; the image side is the config's `img_size`
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
COMPOSITION_MODEL_SIDE = 224  # internlm-xcomposer2-7b: the same network, trained to write articles
PUBLISHED_PLORA_RANK = 256
PUBLISHED_PLORA_ALPHA = 256
PUBLISHED_END_OF_TURN = 92542  # `[UNUSED_TOKEN_145]` of the published tokenizer


class IXC2Config(PreTrainedConfig):
    """Sizes and constants of the model; every default is the published 7B checkpoint's value.

    The constructor is wider than house style allows because its keywords are the keys of a published file.
    `rope_theta` / `rope_scaling` (published form) and `rope_parameters` (transformers 5 form) are both read; the
    latter wins. `use_cache` of the file is ignored: the published `false` would make generation quadratic.
    `max_length` of the file, the authors' limit on training sequences, is dropped.
    """

    model_type = "internlmxcomposer2"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    sub_configs = {"vision_config": CLIPVisionConfig}

    def __init__(
        self,
        *,
        vocab_size: int = 92544,
        hidden_size: int = 4096,
        intermediate_size: int = 14336,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = 8,
        hidden_act: str = "silu",
        bias: bool = False,
        max_position_embeddings: int = 32768,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 1e6,
        rope_scaling: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        img_size: int | None = None,
        vision_config: dict[str, Any] | CLIPVisionConfig | None = None,
        plora_rank: int = PUBLISHED_PLORA_RANK,
        plora_alpha: float = PUBLISHED_PLORA_ALPHA,
        image_token_id: int | None = None,
        end_of_turn_id: int | None = PUBLISHED_END_OF_TURN,
        use_cache: bool = True,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        pad_token_id: int | None = 2,
        tie_word_embeddings: bool = False,
        **kwargs: Any,  # keys every Hugging Face config may carry
    ) -> None:
        heads = num_key_value_heads or num_attention_heads
        if hidden_size % num_attention_heads or num_attention_heads % heads:
            raise ValueError(
                f"config.json: hidden_size={hidden_size} must be a multiple of num_attention_heads="
                f"{num_attention_heads}, and that a multiple of num_key_value_heads={heads}."
            )
        if plora_rank < 1:
            raise ValueError(f"config.json: plora_rank must be at least 1, got {plora_rank}.")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = heads
        self.head_dim = hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.bias = bias
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = rope_parameters or _rope_parameters(rope_theta, rope_scaling)
        self.vision_config = _vision_config(vision_config, img_size)
        self.img_size = _side(self.vision_config.image_size)
        if vision_config is None and self.img_size == COMPOSITION_MODEL_SIDE:
            logger.warning(
                "img_size=224: this is InternLM-XComposer2-7B, the composition model, not VL-7B (490 px). It runs, "
                "with 256 tokens per image, but the paper's ranker is internlm-xcomposer2-vl-7b."
            )
        self.plora_rank = plora_rank
        self.plora_alpha = plora_alpha
        self.end_of_turn_id = end_of_turn_id
        self.use_cache = True
        base: Any = super().__init__  # takes any key; its stubs list only some
        base(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        # The first id that is no row of the embedding, so no text can produce it. Set last: transformers warns of
        # token ids outside the vocabulary, and here that is meant.
        self.image_token_id = vocab_size if image_token_id is None else image_token_id

    @property
    def num_image_tokens(self) -> int:
        """Tokens one image becomes: its patches, without the class token."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def patch_size(self) -> int:
        """Side in pixels of one patch of the tower."""
        return _side(self.vision_config.patch_size)

    @property
    def stop_token_ids(self) -> list[int]:
        """End of text, and end of turn where the vocabulary is large enough to hold it (authors' `chat`)."""
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        turn = self.end_of_turn_id
        stops = [*eos, turn if turn is not None and turn < self.vocab_size else None]
        return sorted({token for token in stops if token is not None})


def _rope_parameters(theta: float, scaling: dict[str, Any] | None) -> dict[str, Any]:
    """The published `rope_theta` + `rope_scaling` in the form that transformers 5 reads."""
    if not scaling:
        return {"rope_type": "default", "rope_theta": float(theta)}
    kind = scaling.get("rope_type", scaling.get("type"))
    return {"rope_type": kind, "rope_theta": float(theta), "factor": float(scaling["factor"])}


def _vision_config(given: dict[str, Any] | CLIPVisionConfig | None, img_size: int | None) -> CLIPVisionConfig:
    """The tower's sizes: from `vision_config` if present, else ViT-L/14 at `img_size` (490 in the VL checkpoint)."""
    if isinstance(given, CLIPVisionConfig):
        return given
    sizes = {"image_size": img_size or 490, **(PUBLISHED_VISION if given is None else given)}
    sizes.pop("model_type", None)
    config = CLIPVisionConfig(**sizes)
    if img_size is not None and config.image_size != img_size:
        raise ValueError(
            f"config.json contradicts itself: img_size={img_size} but vision_config.image_size={config.image_size}. "
            "Set both to the side that the position table of the tower was stored for."
        )
    return config


def _side(value: Any) -> int:
    """A side in pixels; CLIP's config would also allow pairs, this model does not."""
    if not isinstance(value, int):
        raise ValueError(f"config.json: vision_config sides must be whole numbers of pixels, got {value!r}.")
    return value
