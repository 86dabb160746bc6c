"""Dual encoders of transformers as the retriever's encoder, with their own processors and without remote code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rar_mmdet.encoders.lazy import CheckpointEncoder, check_crops, check_tokenizer
from rar_mmdet.encoders.weights import PROCESSORS, VOCABULARIES
from rar_mmdet.errors import ConfigError, EncoderLoadError

__all__ = ["IMAGE_ONLY_TEMPERATURE", "TransformersEncoder"]

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 1 << 16  # tokenised and sorted together (ours)

# `model_type` of config.json -> how its texts are padded. "full": always to the text tower's whole length, without an
# attention mask, as SigLIP was trained; "longest": to the longest of the batch, whose padding has no say (the tower is
# causal, or gets an attention mask); None: the model has no text tower.
FAMILIES = {
    "clip": "longest",
    "metaclip_2": "longest",
    "altclip": "longest",
    "chinese_clip": "longest",
    "tipsv2": "longest",
    "siglip": "full",
    "siglip2": "full",
    "dinov2": None,
    "dinov2_with_registers": None,
    "dinov3_vit": None,
}
# Position tables of XLM-RoBERTa start after its padding token (transformers, modeling_xlm_roberta.py).
_RESERVED_POSITIONS = {"altclip": 2}
# Softmax temperature of DINOv2's own k-NN evaluation (facebookresearch/dinov2, dinov2/eval/knn.py): it learns no scale.
IMAGE_ONLY_TEMPERATURE = 0.07


class _Parts(NamedTuple):
    model: Any
    tokenizer: Any  # None: the model has no text tower


class TransformersEncoder(CheckpointEncoder[_Parts]):
    """Crops and texts to unit vectors by an `AutoModel` of transformers.

    CLIP, Meta CLIP 2, AltCLIP, Chinese-CLIP, TIPSv2, SigLIP, SigLIP 2 (of fixed size, and NaFlex); DINOv2 and DINOv3,
    which have no texts, for memories of exemplars. Crops go through the model's own image processor, texts through its
    own tokenizer. No remote code runs, nothing is downloaded and nothing is unpickled: weights are `.safetensors`.

    Texts of SigLIP and SigLIP 2 are put into lower case, get one end token and are padded to the text tower's whole
    length (64 for published models), whatever the folder's tokenizer settings say: their vectors depend on padding.

    Args:
        model: folder of a checkpoint (config.json, model.safetensors, preprocessor_config.json, tokenizer), or a hub id
            such as 'google/siglip2-base-patch16-224' whose files lie in the local hub cache.
        revision: branch, tag or commit of the hub id.
        device, precision, batch_size: as `LazyEncoder`.

    Raises:
        ConfigError: a value is of no use.
    """

    _told_of_cut_texts = False
    _processor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_processor": None}

    def missing_assets(self) -> list[str]:
        """What must be fetched before this encoder can load: what, where it is looked for, how to get it. Cheap."""
        has_texts = FAMILIES.get(self.checkpoint.config.get("model_type", "")) is not None
        wanted = (PROCESSORS, VOCABULARIES) if has_texts else (PROCESSORS,)
        return [*self.checkpoint.missing(), *self._none_of(*wanted)]

    @property
    def config(self) -> Any:
        """Transformers' config of the model.

        Raises:
            MissingAssetError: files are not on this machine.
            EncoderLoadError: it is of a family that this encoder does not know.
        """
        from transformers import AutoConfig

        self._expect_assets()
        family = self.checkpoint.config.get("model_type")
        if family not in FAMILIES:
            other = {
                "fgclip2": "; FGCLIP2Encoder loads it",
                "qwen3_vl": "; Qwen3VLEmbeddingEncoder loads it",
            }.get(str(family), "")
            raise EncoderLoadError(
                f"{self.checkpoint.folder} holds a model of type {family!r}{other}. TransformersEncoder knows "
                f"{', '.join(FAMILIES)}, without remote code; models of open_clip: OpenClipEncoder"
            )
        return AutoConfig.for_model(**self.checkpoint.config)

    @property
    def has_texts(self) -> bool:
        """Whether the model has a text tower; without one only exemplars can be encoded."""
        return FAMILIES[self.config.model_type] is not None

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        config = self.config
        if not self.has_texts:
            return int(config.hidden_size)
        if FAMILIES[config.model_type] == "full" or config.model_type == "tipsv2":  # pooled, without a projection
            return int(config.vision_config.hidden_size)
        return int(config.projection_dim)

    @property
    def image_size(self) -> int:
        """S in pixels, to which the model's own processor resizes; of NaFlex, the square of its budget of patches.

        Raises:
            EncoderLoadError: the processor makes oblong images.
        """
        processor = self._image_processor()
        if _is_naflex(processor):
            return int(processor.max_num_patches**0.5) * int(processor.patch_size)
        size = processor.size if processor.do_resize else processor.crop_size
        sides = {int(size[key]) for key in ("height", "width", "shortest_edge") if size.get(key)}
        if len(sides) != 1:
            raise EncoderLoadError(f"{self.checkpoint.model}: its processor makes images of {dict(size)}, not squares")
        return sides.pop()

    @property
    def logit_scale(self) -> float:
        """The learned scale of cosines, 1 / τ; a sigmoid's bias cancels in a softmax over names.

        Models without texts learn none: 1 / 0.07, as in DINOv2's own k-NN evaluation.
        """
        if not self.has_texts:
            return 1 / IMAGE_ONLY_TEMPERATURE
        model = self._ready()[0].model
        if self.config.model_type == "tipsv2":  # it has a temperature instead
            return 1 / float(model.temperature.detach().float().item())
        return float(model.logit_scale.detach().float().exp().item())

    @property
    def fingerprint(self) -> str:
        """Family, hash of the model's files and precision; free of places."""
        return f"{self.config.model_type}@{self.checkpoint.fingerprint[:16]}:{self._precision}"

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors on the encoder's device; R may be 0."""
        check_crops(crops)
        parts, device = self._ready()
        vectors = [torch.zeros((0, self.dim), device=device)]
        with torch.autocast(device.type, enabled=False):
            for batch in crops.split(self.batch_size) if len(crops) else ():
                inputs = self._image_processor()(images=list(batch), return_tensors="pt").to(device)
                inputs["pixel_values"] = inputs["pixel_values"].to(parts.model.dtype)
                out = parts.model.get_image_features(**inputs) if parts.tokenizer is not None else parts.model(**inputs)
                vectors.append(self._unit(out.pooler_output))
        return torch.cat(vectors)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 unit vectors of T texts; those too long are cut, and warned of once.

        Raises:
            ConfigError: the model has no text tower.
        """
        if not self.has_texts:
            raise ConfigError(
                f"{self.checkpoint.model} ({self.config.model_type}) encodes images alone, it has no text tower; "
                "use a memory of exemplars with it, not one of names"
            )
        parts, device = self._ready()
        texts = list(texts)
        out = torch.zeros((len(texts), self.dim), device=device)
        with torch.autocast(device.type, enabled=False):
            for first in range(0, len(texts), TEXTS_AT_ONCE):
                with self._lock:  # tokenizers hold state
                    tokens = self._tokens(parts.tokenizer, texts[first : first + TEXTS_AT_ONCE])
                # Texts of as many tokens share a batch, so that little of it is padding.
                lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
                for rows in lengths.argsort(stable=True).split(self.batch_size):
                    part = {name: [values[row] for row in rows.tolist()] for name, values in tokens.items()}
                    masked = "attention_mask" in part
                    batch = parts.tokenizer.pad(part, return_attention_mask=masked, return_tensors="pt", verbose=False)
                    batch = {name: values.to(device) for name, values in batch.items()}
                    out[first + rows] = self._unit(parts.model.get_text_features(**batch).pooler_output)
        return out

    @property
    def text_length(self) -> int:
        """The most tokens of a text that the model reads, start and end tokens among them; 0 without a text tower."""
        config = self.config
        if not self.has_texts:
            return 0
        return int(config.text_config.max_position_embeddings) - _RESERVED_POSITIONS.get(config.model_type, 0)

    def _tokens(self, tokenizer: Any, texts: list[str]) -> dict[str, list[list[int]]]:
        """Token ids, and attention mask where the family takes one; of each text its own number of them."""
        limit = self.text_length
        if FAMILIES[self.config.model_type] == "full":
            from rar_mmdet.encoders.fgclip2 import tokenize  # the same texts: FG-CLIP 2 is made of SigLIP 2

            ids, cut = tokenize(tokenizer, texts, limit)
            self._warn_of_cut_texts(cut, limit, texts)
            return {"input_ids": ids.tolist()}
        limit = min(limit, int(tokenizer.model_max_length))
        found = tokenizer(texts, truncation=True, max_length=limit)
        if max(map(len, found["input_ids"])) >= limit and not self._told_of_cut_texts:
            lengths = [len(ids) for ids in tokenizer(texts, verbose=False).input_ids]
            self._warn_of_cut_texts(sum(length > limit for length in lengths), limit, texts)
        return dict(found)

    def _warn_of_cut_texts(self, cut: int, limit: int, texts: list[str]) -> None:
        if cut and not self._told_of_cut_texts:
            self._told_of_cut_texts = True
            logger.warning("%d texts exceed %d tokens and are cut, e.g. %.80r", cut, limit, max(texts, key=len))

    def _image_processor(self) -> Any:
        from transformers import AutoImageProcessor

        self._expect_assets()
        with self._lock:
            if self._processor is None:
                self._processor = self._pretrained(AutoImageProcessor, "an image processor")
            return self._processor

    def _read(self, device: torch.device, dtype: torch.dtype) -> _Parts:
        from transformers import AutoTokenizer

        config = self.config
        model = self._auto_model(config, dtype)
        tokenizer = self._pretrained(AutoTokenizer, config.model_type) if self.has_texts else None
        if tokenizer is not None:
            # TIPSv2's texts have no end token: they are averaged.
            ends = config.model_type != "tipsv2"
            check_tokenizer(tokenizer, config.text_config.vocab_size, str(self.checkpoint.folder), ends)
        return _Parts(model.to(device).eval().requires_grad_(False), tokenizer)


def _is_naflex(processor: Any) -> bool:
    return getattr(processor, "max_num_patches", None) is not None
