"""Qwen3-VL-Embedding as the retriever's encoder: one language model reads crops and texts, each in a chat's form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rar_mmdet.encoders.lazy import CheckpointEncoder, check_crops
from rar_mmdet.encoders.weights import PROCESSORS, VOCABULARIES
from rar_mmdet.errors import ConfigError, EncoderLoadError

__all__ = ["Qwen3VLEmbeddingEncoder"]

# The authors' own (QwenLM/Qwen3-VL-Embedding, README: default instruction, pixels of an image).
INSTRUCTION = "Represent the user's input."
MIN_PIXELS, MAX_PIXELS = 4096, 1843200
# None is published. Ours; `temperature` of a memory sets another.
TEMPERATURE = 0.02


class _Parts(NamedTuple):
    model: Any
    processor: Any


class Qwen3VLEmbeddingEncoder(CheckpointEncoder[_Parts]):
    """Crops and texts to unit vectors by Qwen3-VL-Embedding 2B or 8B, by transformers' own class and no remote code.

    An instruction and the crop or text go through the folder's own chat template, and the hidden state of the last
    token is the vector. It costs what a language model costs: for crops, a token for every 32x32 px.

    Args:
        model: folder of a published checkpoint, or a hub id such as 'Qwen/Qwen3-VL-Embedding-2B' whose files lie in the
            local hub cache. Other models of type 'qwen3_vl' load too, but were not taught to embed.
        revision: branch, tag or commit of the hub id.
        instruction: what the vectors are for, in a sentence; the authors' default.
        image_size: S, side of the crops; a multiple of 32 px is seen as it is (ours: 256, 64 tokens).
        device, precision, batch_size: as `LazyEncoder`; on a GPU bf16, in which the weights are published.

    Raises:
        ConfigError: a value is of no use.
    """

    gpu_precision = "bf16"

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        instruction: str = INSTRUCTION,
        image_size: int = 256,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 16,
    ) -> None:
        super().__init__(model=model, revision=revision, device=device, precision=precision, batch_size=batch_size)
        if not isinstance(instruction, str) or not instruction.strip():
            raise ConfigError(f"instruction must be a sentence, got {instruction!r}")
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise ConfigError(f"image_size must be a whole number of pixels, got {image_size!r}")
        self.instruction, self._image_size = instruction.strip(), image_size

    def missing_assets(self) -> list[str]:
        """What must be fetched before it can load: what, where it is looked for, how to get it. Cheap."""
        templates = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
        return [*self.checkpoint.missing(), *self._none_of(PROCESSORS, VOCABULARIES, templates)]

    @property
    def config(self) -> Any:
        """Transformers' config of the model.

        Raises:
            MissingAssetError: files are not on this machine.
            EncoderLoadError: it is of another family.
        """
        from transformers import AutoConfig

        self._expect_assets()
        family = self.checkpoint.config.get("model_type")
        if family != "qwen3_vl":
            raise EncoderLoadError(
                f"{self.checkpoint.folder} holds a model of type {family!r}; Qwen3VLEmbeddingEncoder knows 'qwen3_vl', "
                "e.g. Qwen/Qwen3-VL-Embedding-2B. Dual encoders: TransformersEncoder"
            )
        return AutoConfig.for_model(**self.checkpoint.config)

    @property
    def dim(self) -> int:
        """D, the length of the vectors: 2048 (2B) or 4096 (8B)."""
        return int(self.config.text_config.hidden_size)

    @property
    def image_size(self) -> int:
        """S, side in pixels of the crops it is made for."""
        return self._image_size

    @property
    def logit_scale(self) -> float:
        """1 / 0.02, ours: no scale is published."""
        return 1 / TEMPERATURE

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files, of the instruction, side and precision; free of places."""
        self._expect_assets()
        asked = hashlib.sha256(self.instruction.encode()).hexdigest()[:8]
        return f"qwen3_vl@{self.checkpoint.fingerprint[:16]}:{asked}:{self._image_size}:{self._precision}"

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors on the encoder's device; R may be 0."""
        check_crops(crops)
        vectors = [torch.zeros((0, self.dim), device=self._ready()[1])]
        for batch in crops.split(self.batch_size) if len(crops) else ():
            vectors.append(self._encode([{"type": "image"}] * len(batch), list(batch)))
        return torch.cat(vectors)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 unit vectors of T texts; T may be 0."""
        out = torch.zeros((len(texts), self.dim), device=self._ready()[1])
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(texts), self.batch_size):
            rows = order[start : start + self.batch_size]
            out[rows] = self._encode([{"type": "text", "text": texts[row]} for row in rows], None)
        return out

    def _encode(self, contents: Sequence[dict[str, str]], images: list[Tensor] | None) -> Tensor:
        """One batch: (N, D) of what N users say."""
        parts, device = self._ready()
        system = {"role": "system", "content": [{"type": "text", "text": self.instruction}]}
        chats = [[system, {"role": "user", "content": [content]}] for content in contents]
        with self._lock:  # tokenizers hold state
            inputs = parts.processor(
                text=parts.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False),
                images=images,
                images_kwargs={"size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}},
                text_kwargs={"padding": True, "padding_side": "right"},
                return_tensors="pt",
            ).to(device)
        with torch.autocast(device.type, enabled=False):
            hidden = parts.model(**inputs, use_cache=False).last_hidden_state
        ends = inputs["attention_mask"].sum(dim=1) - 1
        return self._unit(hidden[torch.arange(len(hidden), device=device), ends])

    def _read(self, device: torch.device, dtype: torch.dtype) -> _Parts:
        from transformers import AutoProcessor

        config = self.config
        model = self._auto_model(config, dtype)
        processor = self._pretrained(AutoProcessor, config.model_type)
        if not processor.chat_template:
            raise EncoderLoadError(
                f"{self.checkpoint.folder} has no chat template, without which the model was never asked; get the "
                "complete model folder"
            )
        return _Parts(model.to(device).eval().requires_grad_(False), processor)
