"""Decision servers: a photo and K named options in, one probability for each option out, in one prefill.

Three forms are about (November 2026): SGLang's `/decisions` (`questions` with `options`, `images` beside the text),
OpenAI's `/decisions` (`choices`, image parts in `input`), and the System One form (`state`, `criteria`), which SGLang,
vLLM, Ollama and Clef's own server take at `/systemone`, Perplexity and OpenRouter at `/decisions`. Which one a server
takes is found out by asking it, once, about a red and a blue square: what answers must name the options, and depend on
the picture.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rar_mmdet.rankers.completions import MalformedReplyError, reason_of
from rar_mmdet.rankers.served import PNG_URL

__all__ = ["FORMS", "Decided", "Form", "read_decisions"]

_SUM_SLACK = 0.02  # of probabilities that a server rounds to two digits, for each option at most half a hundredth
_ROUNDED_ZERO = 0.0025  # what 0.00 stands for where a server rounds to two digits: the middle of what it can be
_LEAST = 1e-7  # of probability: what float32 cannot tell from 1


@dataclass(frozen=True)
class Decided:
    """What a server says to one question."""

    probabilities: dict[str, float]  # by option; they sum to 1
    label_mass: float | None = None  # in [0, 1]: how much the model wanted to name any option; None: not told


class Form(ABC):
    """How one kind of server wants to be asked. The picture goes where `PNG_URL` stands first."""

    name: ClassVar[str]
    paths: ClassVar[tuple[str, ...]]
    most_options: ClassVar[int]

    @staticmethod
    @abstractmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The fields of a request that asks the same about several groups of options."""

    @staticmethod
    @abstractmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """Of each question, in their order: probabilities as the server has them by option, and the label mass."""


class SGLangForm(Form):
    """https://docs.sglang.io, `DecisionRequest`: options are labelled A to Z."""

    name, most_options = "sglang", 26
    paths = ("/decisions",)

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`."""
        questions = [
            {"id": f"q{i}", "type": "choice", "question": text, "options": [{"name": name} for name in names]}
            for i, names in enumerate(groups)
        ]
        return {"images": [PNG_URL], "input": "", "questions": questions}

    @staticmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """See `Form`."""
        return _by_name(reply["answers"])


class OpenAIForm(Form):
    """https://developers.openai.com, `POST /decisions`; probabilities come rounded to two digits."""

    name, most_options = "openai", 255
    paths = ("/decisions",)

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`."""
        content = [{"type": "input_image", "image_url": PNG_URL}]
        questions = [
            {
                "type": "choice",
                "name": f"q{i}",
                "instructions": text,
                "choices": [{"value": name} for name in names],
            }
            for i, names in enumerate(groups)
        ]
        return {"input": [{"role": "user", "content": content}], "questions": questions}

    @staticmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """See `Form`."""
        found = []
        for answer in reply["answers"]:
            if answer.get("type") == "refusal":
                raise MalformedReplyError("the model declines to answer the question")
            pairs = answer["probabilities"]
            found.append(({pair["value"]: pair["probability"] for pair in pairs}, None))
        return found


class SystemOneForm(Form):
    """https://docs.vllm.ai (structured decisions), https://openrouter.ai (multimodal decisions)."""

    name = "systemone"
    paths: ClassVar[tuple[str, ...]] = ("/systemone", "/decisions")
    most_options = 26

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`."""
        state = [{"type": "image_url", "image_url": {"url": PNG_URL}}]
        questions = {
            f"q{i}": {"type": "choice", "instructions": text, "criteria": dict.fromkeys(names)}
            for i, names in enumerate(groups)
        }
        return {"state": state, "questions": questions}

    @staticmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """See `Form`."""
        return _by_name(reply["answers"])


class SystemOneImagesForm(SystemOneForm):
    """The same with the picture in `images` beside the state, as SGLang's `/systemone` takes it."""

    name = "systemone-images"
    paths: ClassVar[tuple[str, ...]] = ("/systemone",)

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`."""
        return {"images": [PNG_URL], **SystemOneForm.request(text, groups), "state": ""}


class RerankForm(Form):
    """`/rerank` of vLLM with a multimodal reranker (Qwen3-VL-Reranker): p(yes) of photo and each name.

    The probabilities are the odds, shared out: the posterior when exactly one name is right and the answers are
    independent, as of `YesNo`. The label mass is 1 - prod(1 - p), that any of them is.
    """

    name = "rerank"
    paths = ("/rerank",)
    most_options = 1000

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`; there is one group."""
        return {"query": _photo_and(text), "documents": list(groups[0])}

    @staticmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """See `Form`."""
        return _shared_out(reply["results"], "relevance_score", groups[0])


class SGLangRerankForm(RerankForm):
    """`/rerank` of SGLang with the same models: the parts of the query are a list, and so is the answer."""

    name = "sglang-rerank"

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`; there is one group."""
        return {"query": _photo_and(text)["content"], "documents": list(groups[0]), "return_documents": False}

    @staticmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """See `Form`."""
        return _shared_out(reply, "score", groups[0])


class ScoreForm(RerankForm):
    """`/score` of vLLM: the same of a cross-encoder's pairs, for servers that have no `/rerank`."""

    name = "score"
    paths = ("/score",)

    @staticmethod
    def request(text: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """See `Form`; there is one group."""
        return {"text_1": _photo_and(text), "text_2": list(groups[0])}

    @staticmethod
    def answers(reply: Any, groups: Sequence[Sequence[str]]) -> list[tuple[Any, Any]]:
        """See `Form`."""
        return _shared_out(reply["data"], "score", groups[0])


FORMS: tuple[type[Form], ...] = (
    *(SGLangForm, OpenAIForm, SystemOneForm, SystemOneImagesForm),
    *(RerankForm, SGLangRerankForm, ScoreForm),
)


def _photo_and(text: str) -> dict[str, Any]:
    return {"content": [{"type": "image_url", "image_url": {"url": PNG_URL}}, {"type": "text", "text": text}]}


def _shared_out(results: Sequence[Mapping[str, Any]], field: str, names: Sequence[str]) -> list[tuple[Any, Any]]:
    """The odds of p(yes) in `field` of each result, and the probability of any yes; see `RerankForm`."""
    if sorted(result["index"] for result in results) != list(range(len(names))):
        raise MalformedReplyError(f"{len(names)} names were sent, {len(results)} are scored, or one of them twice")
    sure = 1 - _LEAST
    p = {names[result["index"]]: min(max(_number(result[field], field), _LEAST), sure) for result in results}
    odds = {name: value / (1 - value) for name, value in p.items()}
    total = math.fsum(odds.values())
    mass = 1 - math.exp(math.fsum(math.log1p(-value) for value in p.values()))
    return [({name: value / total for name, value in odds.items()}, mass)]


def _by_name(answers: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Answers under the names q0, q1, ... of their questions."""
    return [(answers[f"q{i}"]["probabilities"], answers[f"q{i}"].get("label_mass")) for i in range(len(answers))]


def read_decisions(form: type[Form], body: str, groups: Sequence[Sequence[str]]) -> list[Decided]:
    """What a server says to each group of options.

    Raises:
        MalformedReplyError: it does not say it: options that were not asked about, too few of them, numbers that are no
            probabilities.
    """
    try:
        answers = form.answers(json.loads(body), groups)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise MalformedReplyError(f"expected answers with probabilities, got {reason_of(body) or 'nothing'}") from error
    if len(answers) != len(groups):
        raise MalformedReplyError(f"{len(groups)} questions were asked and {len(answers)} are answered")
    return [_decided(*answer, names) for answer, names in zip(answers, groups, strict=True)]


def _decided(probabilities: Any, label_mass: Any, names: Sequence[str]) -> Decided:
    if not isinstance(probabilities, Mapping):
        raise MalformedReplyError(f"probabilities are {type(probabilities).__name__}, expected one for each option")
    if foreign := [name for name in probabilities if name not in names]:
        raise MalformedReplyError(f"the option {foreign[0]!r} was not asked about; asked were {list(names)}")
    if missing := [name for name in names if name not in probabilities]:
        raise MalformedReplyError(
            f"{len(probabilities)} of {len(names)} options have a probability; {missing[0]!r} has none"
        )
    numbers = [_number(probabilities[name], f"the probability of {name!r}") for name in names]
    if abs(math.fsum(numbers) - 1) > _SUM_SLACK + 0.005 * len(numbers):
        raise MalformedReplyError(f"the probabilities {numbers} sum to {math.fsum(numbers):.3f}, expected 1")
    mass = None if label_mass is None else min(_number(label_mass, "label_mass", slack=1e-3), 1.0)
    floor = _ROUNDED_ZERO if all(abs(100 * p - round(100 * p)) < 1e-9 for p in numbers) else _LEAST
    floored = [max(p, floor) for p in numbers]
    return Decided({name: p / math.fsum(floored) for name, p in zip(names, floored, strict=True)}, mass)


def _number(value: Any, what: str, slack: float = 1e-6) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -slack <= value <= 1 + slack:
        raise MalformedReplyError(f"{what} is {value!r}, expected a number in [0, 1]")  # NaN is not in it either
    return max(float(value), 0.0)
