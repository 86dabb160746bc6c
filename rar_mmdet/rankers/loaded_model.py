"""A vision-language model in memory: read strictly, with its processor and its way to talk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rar_mmdet.errors import ConfigError, RankerLoadError, RarError
from rar_mmdet.rankers.dialogue import Dialogue
from rar_mmdet.rankers.native import import_modules, register_native_models
from rar_mmdet.rankers.parsing import parse_ranking
from rar_mmdet.rankers.questions import Question
from rar_mmdet.structures import RankStatus

__all__ = ["LoadedModel", "Loading", "read_model"]


@dataclass(frozen=True)
class Loading:
    """How a model is read from disk.

    Args:
        dtype: 'float32', 'bfloat16' or 'float16'; `None`: bfloat16 on a GPU, float32 on a CPU.
        device: `None` for the recognizer's.
        revision: of a hub id.
        chat_template: name of a template of this package ('llava_v0', 'llava_v1', ...) or a Jinja file; `None` for the
            processor's own, or the family's where it has none.
        attention: 'sdpa' or 'eager'; `None` for what transformers chooses of the two.
        modules: Python files, or names of installed modules, that make models known to transformers; imported before
            the model is read. For models that neither transformers nor this package has.
    """

    dtype: str | None = None
    device: str | torch.device | None = None
    revision: str | None = None
    chat_template: str | None = None
    attention: str | None = None
    modules: tuple[str | Path, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, got {self.dtype!r}")
        if self.attention not in (None, "sdpa", "eager"):
            raise ConfigError(f"attention must be 'sdpa', 'eager' or None, got {self.attention!r}")
        if isinstance(self.modules, (str, Path)):
            raise ConfigError(f"modules must be a list of Python files or module names, got {self.modules!r}")
        object.__setattr__(self, "modules", tuple(self.modules))


def read_model(folder: Path, device: torch.device, dtype: torch.dtype, loading: Loading = Loading()) -> tuple[Any, Any]:
    """Model and processor from disk, strictly: a weight that is missing is an error, not a warning.

    Args:
        folder: in the layout of transformers.
        device, dtype: as decided; what `loading` says of them is not looked at.
        loading: attention and modules.

    Raises:
        ConfigError: the device cannot be used, or a module cannot be imported.
        RankerLoadError: the folder is damaged, incomplete or of another kind, or too large for the device.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    register_native_models()
    import_modules(loading.modules)
    _expect_device(device)
    chosen = {} if loading.attention is None else {"attn_implementation": loading.attention}
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        auto: Any = AutoModelForImageTextToText  # its stubs forget what output_loading_info returns
        with _no_progress_bar():
            model, info = auto.from_pretrained(
                folder, trust_remote_code=False, dtype=dtype, output_loading_info=True, use_safetensors=True, **chosen
            )
    except RarError:  # of the models of this package
        raise
    except SafetensorError as error:
        raise RankerLoadError(f"a weight file in {folder} is damaged: {error}. Download it again") from error
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise RankerLoadError(
            f"{folder} could not be loaded as a vision-language model: {error}. It must be of a family that "
            "transformers knows (LLaVA, LLaVA-OneVision, Qwen2.5-VL, Qwen3-VL, InternVL3 '-hf', SmolVLM), one of this "
            "package, or one that a module of yours registers, loading=dict(modules=['my_model.py']); with safetensors "
            "weights"
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
        """Left-padded model inputs, on the model's device and in its precision."""
        return self.placed(self.prepare(questions, texts))

    def placed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those tensors where the model is; numbers that are no counts in its precision."""
        device, dtype = self.model.device, self.model.dtype
        return {n: v.to(device, dtype) if v.is_floating_point() else v.to(device) for n, v in batch.items()}

    def prepare(self, questions: Sequence[Question], texts: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded model inputs as the processor makes them, on the CPU."""
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
        return dict(batch)

    @cached_property
    def _closing_ids(self) -> Tensor:
        vocabulary = self.processor.tokenizer.get_vocab()
        return torch.tensor([i for token, i in vocabulary.items() if "]" in token], dtype=torch.int64)

    def list_closed(self, questions: Sequence[Question], start: int) -> Any:
        """Stops a row where its list closes and names a candidate: not at '[1]', nor inside another list.

        Args:
            questions: one for each row.
            start: where the reply begins; the prompt shows the candidates too.
        """
        tokenizer, closing = self.processor.tokenizer, self._closing_ids

        def closed(input_ids: Tensor) -> Tensor:
            done = torch.isin(input_ids[:, -1], closing.to(input_ids.device))
            for row in done.nonzero().flatten().tolist():
                reply = tokenizer.decode(input_ids[row, start:], skip_special_tokens=True).strip()
                listed = reply[reply.rfind("[") :] if 0 < reply.count("[") <= reply.count("]") else ""
                done[row] = parse_ranking(listed, questions[row].candidates).status is not RankStatus.FALLBACK
            return done

        return _stopping(closed)

    @staticmethod
    def long_enough(limits: Sequence[int], start: int) -> Any:
        """Stops each row at its own number of new tokens: how long a reply gets is no matter of its neighbours."""

        def reached(input_ids: Tensor) -> Tensor:
            return torch.tensor(limits, device=input_ids.device) <= input_ids.shape[1] - start

        return _stopping(reached)


def _stopping(test: Callable[[Tensor], Tensor]) -> Any:
    """A stopping criterion of transformers from a function of the (B, T) ids that gives (B,) bool."""
    from transformers import StoppingCriteria

    class Stopping(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # transformers' signature
            return test(input_ids)

    return Stopping()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a line of the log, not a bar of transformers' own."""
    from transformers.utils import logging as transformers_logging

    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


def _expect_device(device: torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"device='{device}' cannot be used on this machine: {reason}; give device='cpu'") from error
