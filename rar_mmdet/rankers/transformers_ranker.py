"""Any vision-language model that transformers knows: `AutoModelForImageTextToText` and `AutoProcessor`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rar_mmdet.errors import MissingAssetError, RankerError, RankerLoadError
from rar_mmdet.rankers.asking import Answer, AskingRanker, Question
from rar_mmdet.rankers.checkpoint import Checkpoint
from rar_mmdet.rankers.dialogue import Dialogue, common_prefix, shipped_template
from rar_mmdet.rankers.native import register_native_models
from rar_mmdet.rankers.prefix import label_log_probs, sequence_log_probs, trim_prefix
from rar_mmdet.rankers.prompts import LETTERS

__all__ = ["TransformersRanker"]

logger = logging.getLogger(__name__)

YES_NO = (("yes", "Yes"), ("no", "No"))
_DEFAULT_CROP_SIZE = 336


class TransformersRanker(AskingRanker):
    """A local vision-language model. Nothing is downloaded and no remote code runs.

    Args:
        model: folder, or hub id that is in the local hub cache (`hf download <id>`).
        ask, prompt, prompts, score, pmi_weight, num_shifts, temperature, decisive_margin, max_fallback_rate, cache: see
            `AskingRanker`.
        revision: of the hub id.
        chat_template: name of a template of this package ('llava_v0', 'llava_v1', ...) or a Jinja file; `None` for the
            processor's own, or the family's where it has none.
        dtype: 'float32', 'bfloat16' or 'float16'; `None`: bfloat16 on a GPU, float32 on a CPU.
        device: `None` for the one given to `load`.
        batch_size: crops per forward pass; bounds memory. Halved, with a warning, when memory runs out.
        image_size: side in pixels of the crops the model gets; `None` for the family's own.
        max_new_tokens: for 'generate'; `None` for twice the length of the list of candidates.
    """

    # Wider than the house's eight parameters: they are the keys of a config, and grouping them would only nest it.
    def __init__(
        self,
        *,
        model: str | Path,
        ask: str = "likelihood",
        prompt: str | None = None,
        prompts: str | Path | None = None,
        score: str = "sum",
        pmi_weight: float = 1.0,
        num_shifts: int | None = None,
        temperature: float = 1.0,
        decisive_margin: float | None = None,
        max_fallback_rate: float = 0.2,
        cache: str | Path | None = None,
        revision: str | None = None,
        chat_template: str | None = None,
        dtype: str | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 16,
        image_size: int | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        super().__init__(
            ask=ask,
            prompt=prompt,
            prompts=prompts,
            score=score,
            pmi_weight=pmi_weight,
            num_shifts=num_shifts,
            temperature=temperature,
            decisive_margin=decisive_margin,
            max_fallback_rate=max_fallback_rate,
            cache=cache,
        )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, got {dtype!r}")
        self.checkpoint = Checkpoint(str(model), revision)
        self.chat_template, self.dtype, self.batch_size = chat_template, dtype, batch_size
        self.image_size, self.max_new_tokens = image_size, max_new_tokens
        self._fixed_device = None if device is None else torch.device(device)
        self._device = self._fixed_device or torch.device("cpu")
        self._fitting_batch = batch_size
        self._loaded: _Loaded | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    @cached_property
    def family(self) -> dict[str, Any]:
        """Settings of the model's family, from families.json; empty for families not listed."""
        table = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
        return table.get(self.checkpoint.config.get("model_type"), {})

    @property
    def crop_size(self) -> int:
        """S: the side of the crops this model gets."""
        return self.image_size or self.checkpoint.image_size() or self.family.get("crop_size", _DEFAULT_CROP_SIZE)

    def missing_assets(self) -> list[str]:
        """What has to be fetched before this ranker can run, one line each; empty if all is there."""
        return self.checkpoint.missing()

    def load(self, device: torch.device | str | None = None) -> None:
        """Say where the model is to run; it is read when the first question has no kept answer.

        Raises:
            MissingAssetError: the model is not on this machine.
        """
        wanted = self._fixed_device or (self._device if device is None else torch.device(device))
        if wanted != self._device:
            self._device, self._loaded = wanted, None
        if self._loaded is None and (missing := self.missing_assets()):
            raise MissingAssetError("; ".join(missing))

    @property
    def loaded(self) -> _Loaded:
        """Model, processor and dialogue; read from disk on first use."""
        if self._loaded is None:
            self.load()
            self._loaded = _Loaded.read(self)
        return self._loaded

    @property
    def precision(self) -> torch.dtype:
        """The dtype the model runs in."""
        name = self.dtype or ("bfloat16" if self._device.type == "cuda" else "float32")
        return getattr(torch, name)

    def identity(self) -> Mapping[str, Any]:
        """Model id, revision, content hash, precision, and what else shapes its input."""
        return {
            "id": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "weights": self.checkpoint.fingerprint,
            "dtype": str(self.precision).removeprefix("torch."),
            "chat_template": self.chat_template,
            "max_new_tokens": self.max_new_tokens if self.ask == "generate" else None,
        }

    def special_tokens(self) -> Sequence[str]:
        """All special and added tokens of the tokenizer."""
        return self.checkpoint.special_tokens

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """One dict per `batch_size` questions."""
        for start in range(0, len(questions), self.batch_size):
            answers = self._answer_what_fits(questions[start : start + self.batch_size])
            yield {start + i: answer for i, answer in enumerate(answers)}

    def _answer_what_fits(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch, in halves, quarters ... if the device's memory asks for it."""
        answers: list[Answer] = []
        while len(answers) < len(questions):
            part = questions[len(answers) : len(answers) + self._fitting_batch]
            try:
                answers += self._answer_batch(part)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise RankerError(
                        f"one crop of {self.crop_size} px does not fit on {self._device} beside the model; give a "
                        "smaller `image_size`, a smaller model or dtype='bfloat16'"
                    ) from error
                self._fitting_batch = (len(part) + 1) // 2
                logger.warning("out of memory with %d crops, going on with %d", len(part), self._fitting_batch)
            if self._device.type == "cuda" and len(answers) < len(questions):
                torch.cuda.empty_cache()
        return answers

    @torch.inference_mode()
    def _answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        if self.ask == "generate":
            return self._generate(questions)
        if self.ask == "likelihood":
            return self._likelihoods(questions)
        return self._labels(questions)

    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        from transformers import StoppingCriteriaList

        talk = self.loaded.dialogue
        inputs = self.loaded.inputs(questions, [talk.text(self.prompt.render(q.candidates)) for q in questions])
        longest = max(len(talk.tokens(str(list(q.candidates)))) for q in questions)
        stops = [] if any("]" in c for q in questions for c in q.candidates) else [self.loaded.list_closed]
        output = self.loaded.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens or 16 + 2 * longest,
            do_sample=False,
            num_beams=1,
            stopping_criteria=StoppingCriteriaList(stops),
            pad_token_id=self.loaded.pad_id,
        )
        fresh = output[:, inputs["input_ids"].shape[1] :]
        replies = talk.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return [Answer(reply=reply.strip()) for reply in replies]

    def _likelihoods(self, questions: Sequence[Question]) -> list[Answer]:
        talk = self.loaded.dialogue
        texts = [talk.text(self.prompt.render(q.candidates)) for q in questions]
        joined = [talk.continuations(q.candidates, end=True) for q in questions]
        inputs = self.loaded.inputs(questions, texts)
        taken_back = [back for back, _ in joined]
        for row, back in zip(inputs["input_ids"], taken_back, strict=True):
            _expect_end(row, talk.prompt_end(back))
        inputs = trim_prefix(inputs, taken_back, self.loaded.pad_id) if any(taken_back) else inputs
        tokens = [continuations for _, continuations in joined]
        sums = sequence_log_probs(self.loaded.model, inputs, tokens)
        return [
            Answer(scores=(tuple(row),), lengths=tuple(len(c) for c in continuations))
            for row, continuations in zip(sums, tokens, strict=True)
        ]

    def _labels(self, questions: Sequence[Question]) -> list[Answer]:
        """'letter' and 'yesno': variants of one prompt that share image and opening, and the next token behind each."""
        talk = self.loaded.dialogue
        k = len(questions[0].candidates)
        words = YES_NO if self.ask == "yesno" else [(letter,) for letter in LETTERS[:k]]
        back, added, labels = talk.labels(words)
        variants = [self._variants(q) for q in questions]
        tails = [[talk.tail(text) for text in row] for row in variants]
        fed = [[[*tail[: len(tail) - back], *added] for tail in row] for row in tails]
        # One variant needs no second pass: its label follows the prompt itself.
        alone = len(variants[0]) == 1 and not added
        shared = [len(row[0]) if alone else min(common_prefix(row), min(map(len, row)) - 1) for row in fed]
        inputs = self.loaded.inputs(questions, [talk.text(row[0]) for row in variants])
        for row, tail in zip(inputs["input_ids"], tails, strict=True):
            _expect_end(row, tail[0])
        trims = [len(row[0]) - n for row, n in zip(tails, shared, strict=True)]
        inputs = trim_prefix(inputs, trims, self.loaded.pad_id)
        continuations = [[tokens[n:] for tokens in row] for row, n in zip(fed, shared, strict=True)]
        log_probs = label_log_probs(self.loaded.model, inputs, continuations, labels)  # (B, variants, labels)
        if self.ask == "yesno":
            log_probs = [[list(column) for column in zip(*row, strict=True)] for row in log_probs]  # (B, 2, K)
        return [Answer(scores=tuple(tuple(scores) for scores in row)) for row in log_probs]

    def _variants(self, question: Question) -> list[str]:
        if self.ask == "yesno":
            return [self.prompt.render(question.candidates, name) for name in question.candidates]
        shifts = self.shifts(len(question.candidates))
        return [self.prompt.render([question.candidates[c] for c in shift]) for shift in shifts]


class _Loaded:
    """Model and processor in memory."""

    def __init__(self, model: Any, processor: Any, dialogue: Dialogue, images: dict[str, Any]) -> None:
        self.model, self.processor, self.dialogue, self.images = model, processor, dialogue, images
        tokenizer = processor.tokenizer
        self.pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self.add_special_tokens = not dialogue.has_doubled_bos

    @staticmethod
    def read(ranker: TransformersRanker) -> _Loaded:
        """From disk, strictly: a weight that is missing or left over is an error, not a warning."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        register_native_models()
        folder = ranker.checkpoint.folder
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            auto: Any = AutoModelForImageTextToText  # its stubs forget what output_loading_info returns
            model, info = auto.from_pretrained(
                folder, trust_remote_code=False, dtype=ranker.precision, output_loading_info=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
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
        try:
            model = model.to(ranker._device).eval()
        except torch.OutOfMemoryError as error:
            raise RankerLoadError(f"{folder} in {ranker.precision} does not fit on {ranker._device}") from error
        dialogue = Dialogue(processor, _template(ranker, processor))
        logger.info("ranker %s on %s in %s, crops of %d px", folder, ranker._device, ranker.precision, ranker.crop_size)
        return _Loaded(model, processor, dialogue, _fill_in(ranker.family.get("images", {}), ranker.crop_size))

    def inputs(self, questions: Sequence[Question], texts: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded model inputs."""
        images = [[Image.fromarray(q.crop.permute(1, 2, 0).numpy())] for q in questions]
        # Nested lists, because flat ones fail for SmolVLM.
        batch = self.processor(
            images=images,
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
    def list_closed(self) -> Any:
        """Stops a row once its last token closes a list."""
        from transformers import StoppingCriteria

        vocabulary = self.processor.tokenizer.get_vocab()
        closing = torch.tensor([i for token, i in vocabulary.items() if "]" in token], dtype=torch.int64)

        class ListClosed(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # transformers' signature
                return torch.isin(input_ids[:, -1], closing.to(input_ids.device))

        return ListClosed()


def _template(ranker: TransformersRanker, processor: Any) -> str | None:
    if ranker.chat_template is not None:
        file = Path(ranker.chat_template)
        return file.read_text(encoding="utf-8") if file.is_file() else shipped_template(ranker.chat_template)
    if getattr(processor, "chat_template", None):
        return None
    name = ranker.family.get("chat_template")
    if name is None:
        raise RankerLoadError(
            f"{ranker.checkpoint.model} brings no chat template and its family has none here; give `chat_template`"
        )
    return shipped_template(name)


def _fill_in(settings: Any, side: int) -> Any:
    if isinstance(settings, dict):
        return {key: _fill_in(value, side) for key, value in settings.items()}
    return {"{side}": side, "{area}": side * side}.get(settings, settings) if isinstance(settings, str) else settings


def _expect_end(input_ids: Tensor, end: Sequence[int]) -> None:
    if input_ids[len(input_ids) - len(end) :].tolist() != list(end):
        raise RankerLoadError(
            "the processor does not keep the text behind the image as it is, so candidates cannot be joined to it; "
            "use ask='generate'"
        )


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "can't allocate" in text
    )
