"""InternLM-XComposer2-VL on today's transformers: CLIP tower, projector, InternLM2 with Partial LoRA (layers.py).

Written from the published description (arXiv 2401.16420, section 3; checkpoint layout of InternLM-XComposer2-VL-7B).
Shape letters: B batch, T tokens of this step, H hidden size, n images, N tokens per image.
"""

from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import CLIPVisionModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from rar_mmdet.errors import HostError
from rar_mmdet.rankers.internlm_xc2.checkpoint import HARMLESS_KEYS, PUBLISHED_TO_NATIVE, check_folder, check_keys
from rar_mmdet.rankers.internlm_xc2.configuration import IXC2Config
from rar_mmdet.rankers.internlm_xc2.footprint import (
    guard_memory,
    quantize_language_model_only,
    refuse_if_too_large,
)
from rar_mmdet.rankers.internlm_xc2.layers import IXC2Decoder
from rar_mmdet.rankers.kv_cache import with_cache

__all__ = ["IXC2ForConditionalGeneration"]

# Earlier 5.x prepares generation, masks and tokenizers differently; 5.16.1 and 5.23.0 were run.
OLDEST_TRANSFORMERS = "5.16"


class IXC2ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """InternLM-XComposer2-VL as any other image-text-to-text model of transformers.

    Image positions of `input_ids` hold `config.image_token_id`, `config.num_image_tokens` of them per image.
    With labels it gives the loss, so that adapters can be trained on it; intermediate states it does not give.
    """

    config_class = IXC2Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["IXC2DecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _keys_to_ignore_on_load_unexpected = HARMLESS_KEYS
    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: IXC2Config) -> None:
        super().__init__(config)
        self.model = IXC2Decoder(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        tower = CLIPVisionModel(config.vision_config)
        tower = getattr(tower, "vision_model", tower)  # earlier 5.x wraps it once more
        self.vit = nn.ModuleDict()  # nested as the published names are
        self.vit["vision_tower"] = nn.ModuleDict({"vision_model": tower})
        width = config.hidden_size
        self.vision_proj = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.post_init()
        self._set_generation_defaults()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a published or converted folder, completely or not at all. Arguments are those of transformers.

        Raises:
            HostError: transformers is older than OLDEST_TRANSFORMERS.
            MissingAssetError: A shard or the config is not there.
            RankerLoadError: Another generation of the model, a damaged shard, missing, unexpected or misshapen
                tensors, or too little GPU memory.
        """
        _check_transformers(transformers.__version__)
        check_folder(pretrained_model_name_or_path)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_language_model_only(kwargs["quantization_config"])
        if isinstance(kwargs.get("config"), IXC2Config):  # the Auto classes always hand it over
            guard_memory(pretrained_model_name_or_path, kwargs["config"], kwargs)
        want_info = kwargs.pop("output_loading_info", False)
        kwargs["key_mapping"] = {**PUBLISHED_TO_NATIVE, **(kwargs.get("key_mapping") or {})}
        load: Any = super().from_pretrained  # its stubs forget what output_loading_info returns
        model, info = load(
            pretrained_model_name_or_path,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that check_keys can name every one of them
            **kwargs,
        )
        check_keys(pretrained_model_name_or_path, info)
        model._set_generation_defaults()
        return (model, info) if want_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Under the published names, so that a saved folder is laid out as a published one."""
        state = kwargs.pop("state_dict", None) or self.state_dict()
        kwargs["state_dict"] = {name.replace(".base.", "."): tensor for name, tensor in state.items()}
        super().save_pretrained(save_directory, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As any module's, but a GPU too small for the weights is named with what would fit.

        Raises:
            RankerLoadError: The free memory of the CUDA device is less than the weights take.
        """
        target = torch.empty(0).to(*args, **kwargs)
        if target.device.type == "cuda":
            moving = [p for p in self.parameters() if p.device != target.device]
            size = sum(p.numel() * (target.dtype if "dtype" in kwargs else p.dtype).itemsize for p in moving)
            refuse_if_too_large(str(self.name_or_path), cast(IXC2Config, self.config), size, target.device)
        return super().to(*args, **kwargs)

    def _set_generation_defaults(self) -> None:
        self.generation_config.use_cache = True  # the published file says false
        self.generation_config.max_length = None  # there: the authors' limit on training sequences
        self.generation_config.eos_token_id = self.config.stop_token_ids
        self.generation_config.pad_token_id = self.config.pad_token_id

    def get_input_embeddings(self) -> nn.Module:
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.output = new_embeddings

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """What the language model sees of each image.

        Args:
            pixel_values: (n, 3, S, S), normalised as the processor does, S = `config.img_size`.

        Returns:
            `last_hidden_state` (n, N, vision hidden): the tower's last layer without the class token, before its
            unused `post_layernorm`; `pooler_output` (n, N, H): the same after the projector.
        """
        features, projected = self._encode(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=projected)

    def _encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tower = self.vit.get_submodule("vision_tower.vision_model")
        features = tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
        return features, self.vision_proj(features)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_mask: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One step: a prompt, or any number of further tokens over a cache.

        Args:
            input_ids: (B, T) int64.
            pixel_values: (n, 3, S, S) of all images of the batch in reading order; None where there are none.
            attention_mask: (B, past + T), 0 at padding on either side; None: no padding. Or a ready 4-D mask.
            position_ids: (B, T); None: counted from the mask, so padding never shifts a token.
            past_key_values: Cache of earlier steps; appended to in place. `cache` is the same: the name that
                transformers has for it from 5.24 on.
            inputs_embeds: (B, T, H) instead of input_ids, with image features already in place.
            image_mask: (B, T) bool, where those features stand; only with inputs_embeds. None: nowhere.
            use_cache: Return a cache. None: if the config says so.
            logits_to_keep: Only the last so many positions (0: all), or an index tensor.
            labels: (B, T) token ids, -100 where nothing is learned; each is predicted from the token before it.
            num_items_in_batch: Tokens to divide the loss by; None: the mean over this batch's labels.
            **kwargs: What the attention backend takes.

        Returns:
            `.logits` (B, T or logits_to_keep, vocab), `.past_key_values`, and with labels `.loss`.

        Raises:
            ValueError: Placeholders and images disagree, both or neither kind of input is given, or labels go with
                logits of some tokens only.
        """
        _refuse_unsupported(kwargs)
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("labels need the logits of all tokens: leave logits_to_keep out.")
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            if image_mask is not None:
                raise ValueError("image_mask goes with inputs_embeds; input_ids mark images by config.image_token_id.")
            inputs_embeds, image_mask = self._embed(input_ids, pixel_values)
        elif input_ids is not None or pixel_values is not None:
            raise ValueError("inputs_embeds already hold text and image features: give no input_ids or pixel_values.")
        if use_cache is None:
            use_cache = self.config.use_cache
        if cache is not None:
            past_key_values = cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = _positions(inputs_embeds, attention_mask, int(past))
        if image_mask is not None:
            image_mask = image_mask.unsqueeze(-1).to(inputs_embeds.dtype)
        hidden = self.model(inputs_embeds, position_ids, attention_mask, past_key_values, image_mask, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(hidden[:, keep])
        loss = None
        if labels is not None:
            loss = ForCausalLMLoss(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **with_cache(past_key_values))

    def _embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Token embeddings with image features at the placeholders (B, T, H), and where those are (B, T)."""
        image_mask = input_ids == self.config.image_token_id
        images_per_row = self._images_per_row(image_mask, 0 if pixel_values is None else len(pixel_values))
        if not any(images_per_row):
            return self.model.tok_embeddings(input_ids), None
        assert pixel_values is not None, "counts were checked"
        embeds = self.model.tok_embeddings(input_ids.masked_fill(image_mask, 0))
        _, features = self._encode(pixel_values)
        features = features.to(embeds.device, embeds.dtype).flatten(0, 1)
        return embeds.masked_scatter(image_mask.unsqueeze(-1), features), image_mask

    def _images_per_row(self, image_mask: Tensor, num_images: int) -> list[int]:
        """Images of each row of the batch, from its placeholders; raises where they cannot match the images."""
        tokens = image_mask.sum(dim=1).tolist()
        size = self.config.num_image_tokens
        if any(count % size for count in tokens) or sum(tokens) != num_images * size:
            raise ValueError(
                f"Placeholders and images disagree: rows hold {tokens} tokens of id {self.config.image_token_id}, an "
                f"image takes {size}, and {num_images} images were given. Use the model's processor, which writes "
                f"{size} placeholders per image, and pass pixel_values of all images in reading order."
            )
        return [count // size for count in tokens]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for beams, and with each row all of its images (not each image by itself)."""
        pixel_values = model_kwargs.pop("pixel_values", None)
        if pixel_values is not None and expand_size > 1:
            rows = self._images_per_row(input_ids == self.config.image_token_id, len(pixel_values))
            groups = [group for group in pixel_values.split(rows) for _ in range(expand_size)]
            pixel_values = torch.cat(groups)
        # Keywords, because it is a static method in earlier 5.x and a bound one now.
        expand: Any = super()._expand_inputs_for_generation  # type: ignore[misc]
        input_ids, model_kwargs = expand(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if pixel_values is not None:
            model_kwargs["pixel_values"] = pixel_values
        return input_ids, model_kwargs


def _check_transformers(version: str) -> None:
    if Version(version) < Version(OLDEST_TRANSFORMERS):
        raise HostError(
            f"InternLM-XComposer2-VL needs transformers>={OLDEST_TRANSFORMERS}, found {version}: run "
            f"`pip install 'transformers>={OLDEST_TRANSFORMERS},<6'`. Other rankers run on what is installed."
        )


def _positions(embeds: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    """Rotary positions (B or 1, T): the number of real tokens before each, whatever the padding."""
    length = embeds.shape[1]
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.arange(past, past + length, device=embeds.device).unsqueeze(0)
    if attention_mask.shape[1] != past + length:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[1]} tokens, but the cache holds {past} and this step adds "
            f"{length}. It must cover both: concatenate the mask of the prefix and of the continuation."
        )
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    """Options that would silently do nothing here."""
    names = ("output_attentions", "output_hidden_states")
    given = {name: kwargs.pop(name, None) for name in names}
    asked = [name for name, value in given.items() if value is not None and value is not False]
    if asked:
        raise ValueError(f"{', '.join(asked)}: not supported by this InternLM-XComposer2-VL.")
