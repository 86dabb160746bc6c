"""Any vision-language model that transformers knows: `AutoModelForImageTextToText` and `AutoProcessor`."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError, MissingAssetError, RankerError, RankerLoadError, RarError
from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.rankers.adapters import Adapter
from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.asks import Likelihood, expect_count
from rar_mmdet.rankers.cache import hash_parts
from rar_mmdet.rankers.dialogue import Dialogue, common_prefix, shipped_template
from rar_mmdet.rankers.loaded_model import LoadedModel, Loading, read_model
from rar_mmdet.rankers.options import Limits, as_options
from rar_mmdet.rankers.prefix import label_log_probs, sequence_log_probs, trim_prefix
from rar_mmdet.rankers.questions import Answer, Ask, Question

__all__ = ["TransformersRanker"]

logger = logging.getLogger(__name__)

_DEFAULT_CROP_SIZE = 336
_LIBRARIES = ("transformers", "tokenizers", "torch", "torchvision")  # whose versions can change an answer
_SPARE_TOKENS = 16  # of a reply beside twice its list of candidates


class TransformersRanker(AskingRanker):
    """A local vision-language model. Nothing is downloaded and no remote code runs.

    Args:
        model: folder, or hub id that is in the local hub cache (`hf download <id>`).
        ask, limits, cache: see `AskingRanker`.
        image_size: side in pixels of the crops the model gets; `None` for the family's own.
        batch_size: crops per forward pass; bounds memory. Halved, with a warning, when memory runs out.
        adapter: folder of a LoRA adapter that `rar-mmdet finetune train` or PEFT wrote; it is added to the weights.
        loading: how the model is read; a `Loading` or a dict of its settings.
    """

    def __init__(
        self,
        *,
        model: str | Path,
        ask: Ask | Mapping[str, Any] | str = Likelihood(),  # noqa: B008 - frozen
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
        adapter: str | Path | None = None,
        loading: Loading | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ask=ask, limits=limits, cache=cache)
        if self.ask.wants == "options":
            raise ConfigError("TransformersRanker cannot ask='decide': that is what DecisionRanker asks servers")
        expect_count("batch_size", batch_size)
        expect_count("image_size", image_size, optional=True)
        self.loading = as_options(Loading, loading, "loading")
        self.checkpoint = Checkpoint(str(model), self.loading.revision, what="ranker model", error=RankerLoadError)
        self.adapter = None if adapter is None else Adapter(adapter)
        self.image_size, self.batch_size = image_size, batch_size
        self._fixed_device = None if self.loading.device is None else _as_device(self.loading.device)
        self._device = self._fixed_device or torch.device("cpu")
        self._fitting_batch = batch_size
        self._loaded: LoadedModel | None = None
        self._model_lock = threading.RLock()  # model and tokenizer serve one thread at a time

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), "_loaded": None}
        del state["_model_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._model_lock = threading.RLock()

    @cached_property
    def family(self) -> dict[str, Any]:
        """Settings of the model's family, from families.json; empty for families not listed."""
        table = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
        return table.get(self.checkpoint.config.get("model_type"), {})

    @cached_property
    def template(self) -> tuple[str, str] | None:
        """Name and text of the chat template given, else of the family's; read once, so that keys and answers agree."""
        name = self.loading.chat_template or self.family.get("chat_template")
        if name is None:
            return None
        file = Path(name)
        given = self.loading.chat_template is not None and file.is_file()
        return name, file.read_text(encoding="utf-8") if given else shipped_template(name)

    @property
    def image_settings(self) -> dict[str, Any]:
        """What the family's image processor is told so that a crop stays one square image."""
        return _fill_in(self.family.get("images", {}), self.crop_size)

    @property
    def crop_size(self) -> int:  # type: ignore[override]  # never set on this ranker
        """S: the side of the crops this model gets."""
        return self.image_size or self.checkpoint.image_size() or self.family.get("crop_size", _DEFAULT_CROP_SIZE)

    def missing_assets(self) -> list[str]:
        """What has to be fetched before this ranker can run, one line each; empty if all is there."""
        lines = self.checkpoint.missing()
        if lines and "xcomposer2" in self.checkpoint.model.lower():
            lines[0] += "; tools/convert_xc2.py makes that folder from the published one (docs/internlm_xc2.md)"
        return lines + ([] if self.adapter is None else self.adapter.missing())

    def load(self, device: torch.device | str | None = None) -> None:
        """Say where the model is to run; it is read when the first question has no kept answer.

        Raises:
            MissingAssetError: the model is not on this machine.
            ConfigError: there is no such device.
        """
        wanted = self._fixed_device or (self._device if device is None else _as_device(device))
        with self._model_lock:
            if wanted != self._device:
                self._device, self._loaded = wanted, None
            if self._loaded is None and (missing := self.missing_assets()):
                raise MissingAssetError("; ".join(missing))

    @property
    def loaded(self) -> LoadedModel:
        """Model, processor and dialogue; read from disk on first use."""
        with self._model_lock:
            if self._loaded is None:
                self.load()
                self._loaded = self._read_model()
            return self._loaded

    def _read_model(self) -> LoadedModel:
        folder = self.checkpoint.folder
        if self.adapter is not None:
            self.adapter.check_base(self.checkpoint)
        model, processor = read_model(folder, self._device, self.precision, self.loading)
        if self.adapter is not None:
            model = self.adapter.put_on(model)
        if self.ask.wants != "text":
            _expect_full_attention(model)
        if not self.family:
            logger.warning("models of type %r are not tested here", self.checkpoint.config.get("model_type"))
        talk, wording = self._dialogue(processor), self.ask.wording
        if talk.image_token in wording.text:
            raise ConfigError(
                f"prompt={wording.name!r} has {talk.image_token!r} in it; leave it out, the chat template adds it"
            )
        logger.info("ranker %s on %s in %s, crops of %d px", folder, self._device, self.precision, self.crop_size)
        return LoadedModel(model, processor, talk, self.image_settings, pictures=not self.family)

    def _dialogue(self, processor: Any) -> Dialogue:
        if self.loading.chat_template is None and processor.chat_template:
            return Dialogue(processor, None, f"the chat template of {self.checkpoint.model}")
        if self.template is None:
            raise RankerLoadError(
                f"{self.checkpoint.model} brings no chat template and its family has none here; give one, "
                "loading=dict(chat_template=...)"
            )
        name, text = self.template
        return Dialogue(processor, text, f"chat_template={name!r}")

    @property
    def precision(self) -> torch.dtype:
        """The dtype the model runs in."""
        name = self.loading.dtype or ("bfloat16" if self._device.type == "cuda" else "float32")
        return getattr(torch, name)

    def identity(self) -> Mapping[str, Any]:
        """Model id, revision, content hashes, precision, and what else shapes its input or computes its output."""
        config = self.checkpoint.config
        # No key where there is none, so that answers kept before adapters were known stay good.
        added = {} if self.adapter is None else {"adapter": self.adapter.identity()}
        return {
            **added,
            "id": self.checkpoint.name,
            "revision": self.loading.revision,
            "weights": self.checkpoint.fingerprint,
            "dtype": str(self.precision).removeprefix("torch."),
            "quantization": config.get("quantization_config", {}).get("quant_method"),
            "device": self._device.type,
            "attention": self.loading.attention or "default",
            "image_processor": self.checkpoint.image_processor,
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "modules": [hash_parts([_content(module)]) for module in self.loading.modules],
            "chat_template": self.template and hash_parts([self.template[1].encode()]),
            "images": self.image_settings,
        }

    def special_tokens(self) -> Sequence[str]:
        """All special and added tokens of the tokenizer."""
        return self.checkpoint.special_tokens

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """One dict per `batch_size` questions."""
        for start in range(0, len(questions), self.batch_size):
            with self._model_lock:
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
                        "smaller `image_size`, a smaller model or loading=dict(dtype='bfloat16')"
                    ) from error
                self._fitting_batch = (len(part) + 1) // 2
                logger.warning("out of memory with %d crops, going on with %d", len(part), self._fitting_batch)
            if self._device.type == "cuda" and len(answers) < len(questions):
                torch.cuda.empty_cache()
        return answers

    @torch.inference_mode()
    def _answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        way = {"names": self._likelihoods, "labels": self._labels, "text": self._generate}[self.ask.wants]
        return way(questions)

    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        from transformers import StoppingCriteriaList

        talk = self.loaded.dialogue
        inputs = self.loaded.inputs(questions, [talk.text(self.ask.texts(q)[0]) for q in questions])
        limits = [self._longest_reply(q) for q in questions]
        start = inputs["input_ids"].shape[1]
        stops = [self.loaded.long_enough(limits, start)]
        if not any("]" in c for q in questions for c in q.candidates):
            stops.append(self.loaded.list_closed(questions, start))
        output = self.loaded.model.generate(
            **inputs,
            max_new_tokens=max(limits),
            do_sample=False,
            num_beams=1,
            stopping_criteria=StoppingCriteriaList(stops),
            pad_token_id=self.loaded.pad_id,
        )
        replies = talk.tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
        return [Answer(reply=reply.strip()) for reply in replies]

    def _longest_reply(self, question: Question) -> int:
        """In tokens; enough for the question's own list of candidates in any format."""
        listed = self.loaded.dialogue.tokens(str(list(question.candidates)))
        return self.ask.max_new_tokens or _SPARE_TOKENS + 2 * len(listed)

    def _likelihoods(self, questions: Sequence[Question]) -> list[Answer]:
        talk = self.loaded.dialogue
        prompts = [self.ask.texts(q)[0] for q in questions]
        joined = [talk.continuations(q.candidates, end=True) for q in questions]
        inputs = self.loaded.inputs(questions, [talk.text(prompt) for prompt in prompts])
        taken_back = [back for back, _ in joined]
        _expect_end(inputs, self._prompt_ends(inputs, prompts, taken_back))
        inputs = trim_prefix(inputs, taken_back, self.loaded.pad_id)
        tokens = [continuations for _, continuations in joined]
        sums = sequence_log_probs(self.loaded.model, inputs, tokens)
        return [
            Answer(scores=(tuple(row),), lengths=tuple(len(c) for c in continuations))
            for row, continuations in zip(sums, tokens, strict=True)
        ]

    def _labels(self, questions: Sequence[Question]) -> list[Answer]:
        """Variants of one prompt that share image and opening, and the next token behind each."""
        talk = self.loaded.dialogue
        back, added, labels = talk.labels(self.ask.labels(len(questions[0].candidates)))
        variants = [self.ask.texts(q) for q in questions]
        inputs = self.loaded.inputs(questions, [talk.text(row[0]) for row in variants])
        if len(variants[0]) == 1 and not added:  # no second pass: the label follows the prompt itself
            trims = [back] * len(questions)
            _expect_end(inputs, self._prompt_ends(inputs, [row[0] for row in variants], trims))
            continuations: list[list[list[int]]] = [[[]]] * len(questions)
        else:
            tails = [[talk.tail(text) for text in row] for row in variants]
            _expect_end(inputs, [row[0] for row in tails])
            fed = [[[*tail[: len(tail) - back], *added] for tail in row] for row in tails]
            shared = [min(common_prefix(row), min(map(len, row)) - 1) for row in fed]
            trims = [len(row[0]) - n for row, n in zip(tails, shared, strict=True)]
            continuations = [[tokens[n:] for tokens in row] for row, n in zip(fed, shared, strict=True)]
        inputs = trim_prefix(inputs, trims, self.loaded.pad_id)
        log_probs = label_log_probs(self.loaded.model, inputs, continuations, labels)  # (B, variants, labels)
        return [Answer(scores=tuple(tuple(scores) for scores in row)) for row in log_probs]

    def _prompt_ends(
        self, inputs: Mapping[str, Tensor], prompts: Sequence[str], back: Sequence[int]
    ) -> list[list[int]]:
        """What each row has to end with: as a rule what all prompts end with, which needs no further tokenising."""
        talk, ends = self.loaded.dialogue, []
        for ids, prompt, count in zip(inputs["input_ids"].tolist(), prompts, back, strict=True):
            end = talk.prompt_end(count)
            # A question's own end may merge with what follows; that is as good, short of the tokens to take back.
            merged = not _ends_with(ids, end) and _ends_with(ids, talk.border_end(count))
            ends.append(talk.tail(prompt) if merged else end)
        return ends


def _as_device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is no device of torch; give 'cpu', 'cuda' or 'cuda:0'") from error


@cache
def _version(library: str) -> str | None:
    """Of an installed library, without importing it; `None` where it is not there."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _content(module: str | Path) -> bytes:
    """What a module of a config is: a file's content, else its name."""
    file = Path(module)
    return file.read_bytes() if file.is_file() else str(module).encode()


def _fill_in(settings: Any, side: int) -> Any:
    if isinstance(settings, dict):
        return {key: _fill_in(value, side) for key, value in settings.items()}
    return {"{side}": side, "{area}": side * side}.get(settings, settings) if isinstance(settings, str) else settings


def _ends_with(ids: list[int], end: list[int]) -> bool:
    return ids[len(ids) - len(end) :] == end


def _expect_end(inputs: Mapping[str, Tensor], ends: Sequence[list[int]]) -> None:
    if not all(_ends_with(ids, end) for ids, end in zip(inputs["input_ids"].tolist(), ends, strict=True)):
        raise RankerLoadError(
            "the processor does not keep the text behind the image as it is, so candidates cannot be joined to it; "
            "use ask='generate'"
        )


def _expect_full_attention(model: Any) -> None:
    # Sliding layers forget what the second pass looks back at, linear ones ignore its mask.
    other = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}
    if other:
        raise RankerLoadError(
            f"{model.name_or_path} has layers of {sorted(other)}; candidates are scored side by side, which needs full "
            "attention in every layer; use ask='generate'"
        )


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return not isinstance(error, RarError) and (
        isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "can't allocate" in text
    )
