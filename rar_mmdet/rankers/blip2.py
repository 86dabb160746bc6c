"""BLIP-2, which answers a question in its own words and nothing else: no chat, no likelihoods of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rar_mmdet.errors import ConfigError, MissingAssetError, RankerLoadError
from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.asks import Open, expect_count
from rar_mmdet.rankers.options import Limits
from rar_mmdet.rankers.questions import Answer, Ask, Question

__all__ = ["Blip2Ranker"]


class Blip2Ranker(AskingRanker):
    """A local BLIP-2 (Salesforce/blip2-flan-t5-xl and its siblings), through transformers; nothing is downloaded.

    Its processor puts the picture in front of the text by itself, and its FLAN-T5 variants read the text by an encoder,
    so that `TransformersRanker` cannot talk to it.

    Args:
        model: folder, or hub id that is in the local hub cache.
        ask, limits, cache: see `AskingRanker`; the way to ask must want a text.
        batch_size: crops per forward pass.
        dtype: 'float32', 'bfloat16' or 'float16'; `None`: bfloat16 on a GPU, float32 on a CPU. (FLAN-T5 overflows in
            float16.)
    """

    def __init__(
        self,
        *,
        model: str | Path,
        ask: Ask | Mapping[str, Any] | str = Open(),  # noqa: B008 - frozen
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        batch_size: int = 16,
        dtype: str | None = None,
    ) -> None:
        super().__init__(ask=ask, limits=limits, cache=cache)
        if self.ask.wants != "text":
            raise ConfigError(f"BLIP-2 answers in words; {type(self.ask).__name__} wants scores. Use ask='open'")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, got {dtype!r}")
        expect_count("batch_size", batch_size)
        self.checkpoint = Checkpoint(str(model), None, what="BLIP-2 model", error=RankerLoadError)
        self.batch_size, self.dtype = batch_size, dtype
        self._device = torch.device("cpu")
        self._parts: tuple[Any, Any] | None = None  # model and processor

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": None}

    @property
    def crop_size(self) -> int:  # type: ignore[override]  # never set on this ranker
        """S, of its vision tower."""
        return int(self.checkpoint.config.get("vision_config", {}).get("image_size", 224))

    def missing_assets(self) -> list[str]:
        """What has to be fetched first, one line each."""
        return self.checkpoint.missing()

    def load(self, device: torch.device | str | None = None) -> None:
        """Say where it is to run; it is read at the first question.

        Raises:
            MissingAssetError: it is not on this machine.
        """
        if missing := self.missing_assets():
            raise MissingAssetError("; ".join(missing))
        self._device, self._parts = torch.device(device or self._device), None

    def identity(self) -> Mapping[str, Any]:
        """Weights and precision."""
        return {"id": self.checkpoint.name, "weights": self.checkpoint.fingerprint, "dtype": str(self._precision)}

    @property
    def _precision(self) -> torch.dtype:
        return getattr(torch, self.dtype or ("bfloat16" if self._device.type == "cuda" else "float32"))

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """One dict per `batch_size` questions of one text: texts of one length need no padding behind the picture."""
        by_text: dict[str, list[int]] = {}
        for index, question in enumerate(questions):
            by_text.setdefault(self.ask.texts(question)[0], []).append(index)
        for text, indices in by_text.items():
            for start in range(0, len(indices), self.batch_size):
                rows = indices[start : start + self.batch_size]
                with self._lock:
                    replies = self._generate(text, [questions[i] for i in rows])
                yield {i: Answer(reply=reply) for i, reply in zip(rows, replies, strict=True)}

    @torch.inference_mode()
    def _generate(self, text: str, questions: Sequence[Question]) -> list[str]:
        model, processor = self._loaded()
        crops = [Image.fromarray(question.crop.permute(1, 2, 0).numpy()) for question in questions]
        inputs = processor(images=crops, text=[text] * len(crops), return_tensors="pt").to(
            self._device, self._precision
        )
        output = model.generate(
            **inputs, max_new_tokens=self.ask.max_new_tokens, do_sample=False, num_beams=1, min_length=0
        )
        start = 0 if model.config.text_config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return [reply.strip() for reply in processor.batch_decode(output[:, start:], skip_special_tokens=True)]

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            from transformers import Blip2ForConditionalGeneration, Blip2Processor

            self.load()
            folder = self.checkpoint.folder
            try:
                processor = Blip2Processor.from_pretrained(folder, trust_remote_code=False)
                model: Any = Blip2ForConditionalGeneration.from_pretrained(
                    folder, dtype=self._precision, use_safetensors=True, trust_remote_code=False
                )
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise RankerLoadError(f"{folder} could not be loaded as BLIP-2: {error}") from error
            self._parts = model.to(self._device).eval(), processor
        return self._parts
