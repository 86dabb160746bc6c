"""A vision-language model in memory: read strictly, with its processor and its way to talk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rar_mmdet.errors import ConfigError, RankerLoadError, RarError
from rar_mmdet.rankers.dialogue import Dialogue
from rar_mmdet.rankers.native import register_native_models
from rar_mmdet.rankers.parsing import parse_ranking
from rar_mmdet.rankers.questions import Question
from rar_mmdet.structures import RankStatus

__all__ = ["LoadedModel", "read_model"]


def read_model(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor from disk, strictly: a weight that is missing is an error, not a warning.

    Raises:
        ConfigError: the device cannot be used.
        RankerLoadError: the folder is damaged, incomplete or of another kind, or too large for the device.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    register_native_models()
    _expect_device(device)
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        auto: Any = AutoModelForImageTextToText  # its stubs forget what output_loading_info returns
        model, info = auto.from_pretrained(
            folder, trust_remote_code=False, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
    except RarError:  # of the models of this package
        raise
    except SafetensorError as error:
        raise RankerLoadError(f"a weight file in {folder} is damaged: {error}. Download it again") from error
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise RankerLoadError(
            f"{folder} could not be loaded as a vision-language model: {error}. It must be of a family that "
            "transformers knows (LLaVA, LLaVA-OneVision, Qwen2.5-VL, Qwen3-VL, InternVL3 '-hf', SmolVLM) or one of "
            "this package, with safetensors weights"
        ) from error
    problems = {key: sorted(map(str, info[key]))[:3] for key in ("missing_keys", "mismatched_keys") if info[key]}
    if problems:
        raise RankerLoadError(f"{folder} does not fill the model: {problems}, ... Download it again")
    if model.config._attn_implementation not in ("sdpa", "eager"):
        model.set_attn_implementation("sdpa")
    processor.tokenizer.padding_side = "left"  # right padding changes what is generated, with only a warning
    # A hub's own settings change greedy replies too: Qwen2.5-VL's repetition_penalty punishes names of the prompt.
    # They go at the model, because `generate` fills what a call leaves open from there.
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in ids})
    try:
        return model.to(device).eval(), processor
    except torch.OutOfMemoryError as error:
        raise RankerLoadError(f"{folder} in {dtype} does not fit on {device}") from error


class LoadedModel:
    """Model and processor in memory.

    Args:
        model, processor: of transformers.
        dialogue: how to talk to it.
        images: settings for the image processor.
        pictures: give the processor PIL images, which all take, and not tensors, which spare the conversion.
    """

    def __init__(
        self, model: Any, processor: Any, dialogue: Dialogue, images: dict[str, Any], pictures: bool = False
    ) -> None:
        self.model, self.processor, self.dialogue, self.images = model, processor, dialogue, images
        self.pictures = pictures
        tokenizer = processor.tokenizer
        self.pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self.add_special_tokens = not dialogue.has_doubled_bos

    def inputs(self, questions: Sequence[Question], texts: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded model inputs."""
        crops = [Image.fromarray(q.crop.permute(1, 2, 0).numpy()) if self.pictures else q.crop for q in questions]
        batch = self.processor(
            images=[[crop] for crop in crops],  # nested lists, because flat ones fail for SmolVLM
            text=list(texts),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=self.add_special_tokens,
            **self.images,
        )
        batch.pop("token_type_ids", None)  # some fast tokenizers give it, no decoder takes it
        device, dtype = self.model.device, self.model.dtype
        return {n: v.to(device, dtype) if v.is_floating_point() else v.to(device) for n, v in batch.items()}

    @cached_property
    def _closing_ids(self) -> Tensor:
        vocabulary = self.processor.tokenizer.get_vocab()
        return torch.tensor([i for token, i in vocabulary.items() if "]" in token], dtype=torch.int64)

    def list_closed(self, questions: Sequence[Question], start: int) -> Any:
        """Stops a row where a bracket closes and the reply, from token `start` on, names a candidate: not at '[1]'."""
        from transformers import StoppingCriteria

        tokenizer, closing = self.processor.tokenizer, self._closing_ids

        class ListClosed(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # transformers' signature
                closed = torch.isin(input_ids[:, -1], closing.to(input_ids.device))
                for row in closed.nonzero().flatten().tolist():
                    reply = tokenizer.decode(input_ids[row, start:], skip_special_tokens=True)
                    closed[row] = parse_ranking(reply, questions[row].candidates).status is not RankStatus.FALLBACK
                return closed

        return ListClosed()


def _expect_device(device: torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"device='{device}' cannot be used on this machine: {reason}; give device='cpu'") from error
