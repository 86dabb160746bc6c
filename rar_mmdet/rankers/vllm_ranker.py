"""A vision-language model in vLLM's offline engine: the questions and answers of `TransformersRanker`, its batching.

vLLM's pins of torch and transformers rule it out beside MMDetection: install this package and `rar-mmdet[vllm]` in an
environment of their own. One token with given label ids answers a letter or yes and no; a likelihood takes the
log-probabilities of the prompt, for which vLLM switches its prefix cache off: K prefills for each crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rar_mmdet.errors import MissingAssetError, RankerLoadError
from rar_mmdet.rankers.asks import Letter
from rar_mmdet.rankers.dialogue import Dialogue
from rar_mmdet.rankers.loaded_model import Loading
from rar_mmdet.rankers.options import Limits
from rar_mmdet.rankers.questions import Answer, Ask, Question
from rar_mmdet.rankers.transformers_ranker import TransformersRanker

__all__ = ["VLLMRanker"]

_INSTALL = "pip install 'rar-mmdet[vllm]' in an environment of its own (its pins of torch exclude MMDetection)"
_ONE_ORDER = Letter(num_shifts=1)


@dataclass(frozen=True)
class _Engine:
    """The engine, and how to talk to its model."""

    llm: Any  # vllm.LLM
    sampling: Any  # the class vllm.SamplingParams
    dialogue: Dialogue


class VLLMRanker(TransformersRanker):
    """A local model through `vllm.LLM`. Nothing is downloaded and no remote code runs.

    Args:
        model, limits, cache, image_size, loading: see `TransformersRanker`; of `loading`, `attention` and `modules` are
            not for vLLM.
        ask: as there; one order of letters by default, for every further one is a prefill.
        chunk_size: crops handed to the engine together: it prepares all pictures of a call before it begins, so this
            bounds memory, and what a killed run has to ask again.
        engine: further arguments of `vllm.LLM`, such as dict(tensor_parallel_size=2, gpu_memory_utilization=0.9).
    """

    def __init__(
        self,
        *,
        model: str | Path,
        ask: Ask | Mapping[str, Any] | str = _ONE_ORDER,
        limits: Limits | Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        image_size: int | None = None,
        chunk_size: int = 512,
        engine: Mapping[str, Any] | None = None,
        loading: Loading | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            ask=_ONE_ORDER if ask == "letter" else ask,
            limits=limits,
            cache=cache,
            image_size=image_size,
            batch_size=chunk_size,
            loading=loading,
        )
        self.engine_settings = dict(engine or {})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "engine"}

    def missing_assets(self) -> list[str]:
        """vLLM, or the model."""
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            return [f"VLLMRanker needs vllm ({error}): {_INSTALL}", *super().missing_assets()]
        return super().missing_assets()

    def identity(self) -> Mapping[str, Any]:
        """As of `TransformersRanker`, and the engine."""
        import vllm

        return {**super().identity(), "engine": ["vllm", vllm.__version__, repr(sorted(self.engine_settings.items()))]}

    @cached_property
    def engine(self) -> _Engine:
        """vLLM with the model; started on first use.

        Raises:
            MissingAssetError: vLLM or the model is not there.
            RankerLoadError: this vLLM does not give the log-probabilities of given tokens.
        """
        if missing := self.missing_assets():
            raise MissingAssetError("; ".join(missing))
        from transformers import AutoProcessor
        from vllm import LLM, SamplingParams

        folder = str(self.checkpoint.folder)
        talk = self._dialogue(AutoProcessor.from_pretrained(folder, trust_remote_code=False))
        try:
            SamplingParams(max_tokens=1, logprob_token_ids=[0])
        except TypeError as error:
            raise RankerLoadError(
                f"this vLLM has no SamplingParams.logprob_token_ids ({error}); versions since March 2026 have it"
            ) from error
        settings: dict[str, Any] = {
            "model": folder,
            "dtype": str(self.precision).removeprefix("torch."),
            "limit_mm_per_prompt": {"image": 1},
            "mm_processor_kwargs": self.image_settings or None,
            "mm_processor_cache_gb": 0,  # every crop is new
            "trust_remote_code": False,
        }
        return _Engine(LLM(**{**settings, **self.engine_settings}), SamplingParams, talk)

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, Answer]]:
        """One dict per `chunk_size` questions."""
        way = {"names": self._by_likelihood, "labels": self._by_label, "text": self._by_text}[self.ask.wants]
        for start in range(0, len(questions), self.batch_size):
            with self._model_lock:
                answers = way(questions[start : start + self.batch_size])
            yield {start + i: answer for i, answer in enumerate(answers)}

    def _run(self, prompts: Sequence[tuple[Question, list[int]]], sampling: Any) -> list[Any]:
        """Outputs in the order of the prompts; each is a crop and the tokens of its conversation."""
        # vLLM counts a picture's tokens by its size, and takes an array's for (channels, height, width).
        inputs = [
            {"prompt_token_ids": ids, "multi_modal_data": {"image": question.crop.numpy()}} for question, ids in prompts
        ]
        return list(self.engine.llm.generate(inputs, sampling, use_tqdm=False))

    def _tokens(self, text: str) -> list[int]:
        """Of a conversation up to its reply, the picture one token; with a BOS where the model wants one."""
        talk = self.engine.dialogue
        return list(talk.tokenizer(talk.text(text), add_special_tokens=not talk.has_doubled_bos).input_ids)

    def _by_label(self, questions: Sequence[Question]) -> list[Answer]:
        back, added, labels = self.engine.dialogue.labels(self.ask.labels(len(questions[0].candidates)))
        texts = [self.ask.texts(question) for question in questions]
        prompts = [
            (question, _without_last(self._tokens(text), back) + added)
            for question, row in zip(questions, texts, strict=True)
            for text in row
        ]
        wanted = sorted({token for ids in labels for token in ids})
        # Without `logprobs`: beside given tokens vLLM takes no other number than theirs, and only up to max_logprobs.
        sampling = self.engine.sampling(temperature=0.0, max_tokens=1, logprob_token_ids=wanted, detokenize=False)
        outputs = iter(self._run(prompts, sampling))
        rows = [[next(outputs).outputs[0].logprobs[0] for _ in row] for row in texts]
        return [Answer(scores=tuple(tuple(_log_prob(found, ids) for ids in labels) for found in row)) for row in rows]

    def _by_likelihood(self, questions: Sequence[Question]) -> list[Answer]:
        joined = [self.engine.dialogue.continuations(q.candidates, end=True) for q in questions]
        prompts = [
            (question, _without_last(self._tokens(self.ask.texts(question)[0]), back) + list(tokens))
            for question, (back, names) in zip(questions, joined, strict=True)
            for tokens in names
        ]
        sampling = self.engine.sampling(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = iter(self._run(prompts, sampling))
        answers = []
        for _, names in joined:
            sums = []
            for tokens in names:
                listed = next(outputs).prompt_logprobs[-len(tokens) :]
                sums.append(math.fsum(found[token].logprob for found, token in zip(listed, tokens, strict=True)))
            answers.append(Answer(scores=(tuple(sums),), lengths=tuple(map(len, names))))
        return answers

    def _by_text(self, questions: Sequence[Question]) -> list[Answer]:
        prompts = [(question, self._tokens(self.ask.texts(question)[0])) for question in questions]
        longest = max(self._longest(question) for question in questions)
        sampling = self.engine.sampling(temperature=0.0, max_tokens=longest, repetition_penalty=1.0)
        return [Answer(reply=output.outputs[0].text.strip()) for output in self._run(prompts, sampling)]

    def _longest(self, question: Question) -> int:
        listed = self.engine.dialogue.tokens(str(list(question.candidates)))
        return self.ask.max_new_tokens or 16 + 2 * len(listed)


def _without_last(ids: list[int], count: int) -> list[int]:
    return ids[: len(ids) - count]


def _log_prob(found: Mapping[int, Any], ids: Sequence[int]) -> float:
    """log p of any of the tokens."""
    values = [found[token].logprob for token in ids]
    peak = max(values)
    return peak + math.log(math.fsum(math.exp(value - peak) for value in values)) if math.isfinite(peak) else peak
