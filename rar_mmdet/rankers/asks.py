"""Ways to ask: what a model is shown, what a trained one answers, and what an answer means.

A way to ask is data, and the same object serves a local model, a server, an engine for batches, and training. It knows
no model. Everything here is about one question, so no answer can depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers.parsing import Parsed, parse_choice, parse_ranking
from rar_mmdet.rankers.prompts import FIELDS, LETTERS, Prompt, load_prompts
from rar_mmdet.rankers.questions import Answer, Ask, Question, Reading
from rar_mmdet.structures import RankStatus

__all__ = ["Decide", "Generate", "Letter", "Likelihood", "Open", "YesNo", "as_ask", "cyclic_shifts", "expect_count"]

_BLANK = 127  # grey level of the crop that shows nothing
_SHOWN_CHARS = 300  # of a reply in the log


def expect_count(name: str, value: int | None, optional: bool = False) -> None:
    """Raise unless a setting is a whole number of at least 1, or `None` where that is allowed."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (optional and value is None) and (not whole or value < 1):  # type: ignore[operator]
        raise ConfigError(f"{name} must be a whole number of at least 1{' or None' * optional}, got {value!r}")


def cyclic_shifts(k: int, num_shifts: int) -> list[list[int]]:
    """`num_shifts` orders of K candidates, evenly spread: position p of shift s shows candidate (p + offset_s) mod K.

    With num_shifts = K every candidate stands once in every position.

    >>> cyclic_shifts(3, 3)
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    offsets = [s * k // num_shifts for s in range(min(num_shifts, k))]
    return [[(position + offset) % k for position in range(k)] for offset in offsets]


@dataclass(frozen=True)
class _Way:
    """What the four ways have in common.

    Args:
        prompt: name of the prompt; `None` for the usual one of this way to ask.
        prompts: JSON file of {name: text} that adds to or replaces the prompts of this package.
    """

    prompt: str | None = None
    prompts: str | Path | None = field(default=None, kw_only=True)

    name: ClassVar[str]
    usual_prompt: ClassVar[str]
    wants: ClassVar[str]
    takes_one_name: ClassVar[bool] = False  # whether the prompt is about one candidate, {name}

    def __post_init__(self) -> None:
        wording = self.wording
        given = f"prompt {wording.name!r} is {wording.text!r}"
        if ("{name}" in wording.text) != self.takes_one_name:
            raise ConfigError(
                f"YesNo, and no other way to ask, needs a prompt with {{name}} in it; this is {type(self).__name__}, "
                f"whose {given}"
            )
        if unknown := wording.unknown_fields:
            raise ConfigError(f"no placeholder {unknown[0]!r}; there are {', '.join(FIELDS)}: {given}")
        self._check(wording, given)

    def _check(self, wording: Prompt, given: str) -> None:
        """Refuse settings of this way."""

    @cached_property
    def wording(self) -> Prompt:
        known, name = load_prompts(self.prompts), self.prompt or self.usual_prompt
        if name not in known:
            raise ConfigError(
                f"prompt={name!r} is not known; known are {sorted(known)}, or put your own into a file for `prompts`"
            )
        return known[name]

    @property
    def max_new_tokens(self) -> int | None:
        return None

    @property
    def max_candidates(self) -> int | None:
        return len(LETTERS) if self.wording.has_letters else None

    def shown_order(self, names: Sequence[str]) -> list[int]:
        # Retrieval's own order, as in the paper.
        return list(range(len(names)))

    def texts(self, question: Question) -> list[str]:
        return [self.wording.render(question.candidates)]

    def labels(self, k: int) -> list[tuple[str, ...]]:
        return []

    def blanks(self, question: Question) -> list[Question]:
        return []

    def check(self, answer: Answer, k: int) -> None:
        rows, columns, lengths = self._shape(k)
        sizes = [len(row) for row in answer.scores]
        odd_masses = len(answer.masses) not in (0, rows)
        if answer.scores and (sizes != [columns] * rows or len(answer.lengths) != lengths or odd_masses):
            raise RankerError(
                f"an answer has scores {answer.scores}, lengths {answer.lengths}, masses {answer.masses} for K={k} "
                f"candidates; {type(self).__name__} needs {rows} x {columns} scores and {lengths} lengths, or a reply; "
                f"and {rows} masses or none"
            )

    def _shape(self, k: int) -> tuple[int, int, int]:
        """Rows and columns of an answer's scores, and how many lengths."""
        return 0, 0, 0

    def key(self) -> Mapping[str, Any]:
        return {"ask": self.name}

    def report(self) -> dict[str, Any]:
        return {"ask": self.name, "prompt": self.wording.name}


def _by_the_alphabet(names: Sequence[str]) -> list[int]:
    """The answer then cannot depend on retrieval's order, and equal sets of candidates share one question."""
    return sorted(range(len(names)), key=lambda column: names[column])


def _first(truth: int | Sequence[int]) -> int:
    return truth if isinstance(truth, int) else truth[0]


@dataclass(frozen=True)
class Likelihood(_Way):
    """The likelihood of each candidate's name as the reply.

    Args:
        score: 'sum' of the log-probabilities of a name's tokens (favours short names), 'mean' per token (as Qwen-VL's
            own evaluation), or 'pmi': minus that for a blank crop (VisualGPTScore, arXiv 2306.01879).
        pmi_weight: a in log p(name | crop) - a * log p(name | blank).
    """

    score: str = "sum"
    pmi_weight: float = 1.0

    name = "likelihood"
    usual_prompt = "choose"
    wants = "names"

    def _check(self, wording: Prompt, given: str) -> None:
        if self.score not in ("sum", "mean", "pmi"):
            raise ConfigError(f"Likelihood.score must be 'sum', 'mean' or 'pmi', got {self.score!r}")

    def shown_order(self, names: Sequence[str]) -> list[int]:
        return _by_the_alphabet(names)

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        return [question.candidates[_first(truth)]]

    def blanks(self, question: Question) -> list[Question]:
        if self.score != "pmi":
            return []
        blank = question.crop.new_full(question.crop.shape, _BLANK)
        if self.wording.varies_with_candidates:
            return [Question(blank, question.candidates)]
        return [Question(blank, (name,)) for name in question.candidates]  # shared by all lists with that name

    def _shape(self, k: int) -> tuple[int, int, int]:
        return 1, k, k

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        if not answer.scores:
            return _read_list(answer, question)
        (scores,) = answer.scores
        if self.score == "mean":
            scores = tuple(total / max(n, 1) for total, n in zip(scores, answer.lengths, strict=True))
        if self.score == "pmi":
            prior = [value for blank in blanks for value in (blank.scores[0] if blank.scores else [math.nan])]
            prior = prior if len(prior) == len(scores) else [math.nan] * len(scores)
            scores = tuple(total - self.pmi_weight * null for total, null in zip(scores, prior, strict=True))
        # The end of the turn is part of each name's score, so no reply is counted for two names.
        named = dict(zip(question.candidates, answer.scores[0], strict=True))
        mass = _mass(tuple(named.values()))
        return Reading.of_scores(scores, question.candidates, label_mass=mass, presence=mass)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "score": self.score}


@dataclass(frozen=True)
class Letter(_Way):
    """Candidates behind letters, and the letter that comes next.

    Args:
        num_shifts: cyclic orders of the candidates that are averaged; `None` for all K, 1 for retrieval's own. Over all
            K a model's preference for a letter (arXiv 2309.03882) adds the same to every candidate and drops out.
    """

    num_shifts: int | None = None

    name = "letter"
    usual_prompt = "letter"
    wants = "labels"

    def _check(self, wording: Prompt, given: str) -> None:
        expect_count("Letter.num_shifts", self.num_shifts, optional=True)
        if not wording.shows_letters:
            raise ConfigError(f"Letter needs a prompt with {{options}} or {{option_lines}} in it; its {given}")

    def shifts(self, k: int) -> list[list[int]]:
        """The orders in which K candidates are shown."""
        return cyclic_shifts(k, k if self.num_shifts is None else self.num_shifts)

    def texts(self, question: Question) -> list[str]:
        names = question.candidates
        return [self.wording.render([names[c] for c in shift]) for shift in self.shifts(len(names))]

    def labels(self, k: int) -> list[tuple[str, ...]]:
        return [(letter,) for letter in LETTERS[:k]]

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        return [LETTERS[shift.index(_first(truth))] for shift in self.shifts(len(question.candidates))]

    def _shape(self, k: int) -> tuple[int, int, int]:
        return len(self.shifts(k)), k, 0

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        names = question.candidates
        k = len(names)
        if not answer.scores:  # a text is the answer to the first order alone
            parsed = parse_choice(answer.reply or "", names)
            chosen = () if parsed.status is RankStatus.FALLBACK else (LETTERS[parsed.order[0]],)
            return Reading(
                parsed.order, parsed.status, letters=chosen, reply=answer.reply, problem=_unread(parsed, answer, names)
            )
        totals, letters, preferred = [0.0] * k, [], []
        for shift, row in zip(self.shifts(k), answer.scores, strict=True):
            # Each order is normalised over its letters first: it counts as much as any other.
            for candidate, log_prob in zip(shift, _log_softmax(row), strict=True):
                totals[candidate] += log_prob
            place = max(range(k), key=row.__getitem__)
            letters.append(LETTERS[place])
            preferred.append(shift[place])
        scores, mass = [total / len(answer.scores) for total in totals], _label_mass(answer)
        return Reading.of_scores(
            scores, names, label_mass=mass, presence=mass, letters=tuple(letters), preferred=tuple(preferred)
        )


@dataclass(frozen=True)
class YesNo(_Way):
    """Yes or no to each candidate by itself.

    The score is log p(yes) - log p(no); its sigmoid is VQAScore (arXiv 2404.01291). A softmax over it is the posterior
    when exactly one candidate is right and the answers are independent: p_j * prod_i!=j (1 - p_i) is proportional to
    the odds of j.
    """

    name = "yesno"
    usual_prompt = "yesno"
    wants = "labels"
    takes_one_name = True

    def shown_order(self, names: Sequence[str]) -> list[int]:
        return _by_the_alphabet(names)

    def texts(self, question: Question) -> list[str]:
        return [self.wording.render(question.candidates, name) for name in question.candidates]

    def labels(self, k: int) -> list[tuple[str, ...]]:
        return [("yes", "Yes"), ("no", "No")]

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        right = question.candidates[_first(truth)]
        return ["yes" if name == right else "no" for name in question.candidates]

    def _shape(self, k: int) -> tuple[int, int, int]:
        return k, 2, 0

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        if not answer.scores:
            return _read_list(answer, question)
        margins = [yes - no for yes, no in answer.scores]
        # That not every answer is no, if they are independent; a name that is there twice is asked about once.
        asked = dict(zip(question.candidates, margins, strict=True)).values()
        absent = math.exp(sum(-_softplus(margin) for margin in asked))
        return Reading.of_scores(margins, question.candidates, label_mass=_label_mass(answer), presence=1.0 - absent)


@dataclass(frozen=True)
class Generate(_Way):
    """A text that lists the candidates, best first; the paper's way, and its prompt.

    Args:
        max_new_tokens: the longest reply in tokens; `None` for what the question's own list of candidates needs.
    """

    max_new_tokens: int | None = None

    name = "generate"
    usual_prompt = "paper"
    wants = "text"

    def _check(self, wording: Prompt, given: str) -> None:
        expect_count("Generate.max_new_tokens", self.max_new_tokens, optional=True)
        if not wording.mentions_candidates:
            raise ConfigError(f"Generate needs a prompt that shows the candidates; its {given}")

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        leading = [truth] if isinstance(truth, int) else list(truth)
        behind = [place for place in range(len(question.candidates)) if place not in leading]
        return [str([question.candidates[place] for place in (*leading, *behind)])]

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        reading = _read_list(answer, question)
        if reading.status is not RankStatus.FALLBACK or not self.wording.shows_letters:
            return reading
        parsed = parse_choice(answer.reply or "", question.candidates)
        problem = _unread(parsed, answer, question.candidates)
        return Reading(parsed.order, parsed.status, reply=answer.reply, problem=problem)

    def key(self) -> Mapping[str, Any]:
        return {**super().key(), "max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True)
class Decide(_Way):
    """One question with the candidates as named options; a decision server gives each a probability.

    The candidates stand in no text: the server has its own way to show options.
    """

    name = "decide"
    usual_prompt = "decide"
    wants = "options"

    def _check(self, wording: Prompt, given: str) -> None:
        if wording.mentions_candidates:
            raise ConfigError(f"Decide gives the candidates as options, not in its prompt; its {given}")

    def shown_order(self, names: Sequence[str]) -> list[int]:
        return _by_the_alphabet(names)

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        return [question.candidates[_first(truth)]]

    def _shape(self, k: int) -> tuple[int, int, int]:
        return 1, k, 0

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        if not answer.scores:
            return _read_list(answer, question)
        mass = _label_mass(answer) if answer.masses else None  # scores alone are shared out already
        return Reading.of_scores(answer.scores[0], question.candidates, label_mass=mass, presence=mass)


@dataclass(frozen=True)
class Open(_Way):
    """The model's own words, without a list to choose from; names are found this way (`AskingRanker.replies`).

    As a way to rank, the candidate that the reply names comes first.

    Args:
        max_new_tokens: the longest reply in tokens (ours: some names and no story).
    """

    max_new_tokens: int = 64

    name = "open"
    usual_prompt = "name"
    wants = "text"

    def _check(self, wording: Prompt, given: str) -> None:
        expect_count("Open.max_new_tokens", self.max_new_tokens)
        if wording.mentions_candidates:
            raise ConfigError(f"Open shows no candidates; its {given}")

    def texts(self, question: Question) -> list[str]:
        return [question.words or self.wording.render(question.candidates)]

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        return [question.candidates[_first(truth)]]

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        return _read_list(answer, question)

    def key(self) -> Mapping[str, Any]:
        return {**super().key(), "max_new_tokens": self.max_new_tokens}


def _read_list(answer: Answer, question: Question) -> Reading:
    parsed = parse_ranking(answer.reply or "", question.candidates)
    problem = _unread(parsed, answer, question.candidates)
    return Reading(parsed.order, parsed.status, reply=answer.reply, problem=problem)


def _unread(parsed: Parsed, answer: Answer, names: Sequence[str]) -> str | None:
    if parsed.status is not RankStatus.FALLBACK:
        return None
    return f"no candidate found in the reply {(answer.reply or '')[:_SHOWN_CHARS]!r} to {list(names)}"


def _log_softmax(row: Sequence[float]) -> list[float]:
    peak = max(row)
    total = math.log(sum(math.exp(value - peak) for value in row)) if math.isfinite(peak) else math.nan
    return [value - peak - total for value in row]


def _mass(row: Sequence[float]) -> float | None:
    """Probability of any of the labels of one text."""
    total = sum(math.exp(min(value, 0.0)) for value in row)
    return None if math.isnan(total) else min(total, 1.0)


def _label_mass(answer: Answer) -> float | None:
    """Probability of any of the labels, averaged over the texts; `None` where it is not known of one of them."""
    masses = answer.masses or [_mass(row) for row in answer.scores]
    known = [mass for mass in masses if mass is not None]
    return sum(known) / len(known) if known and len(known) == len(masses) else None


def _softplus(value: float) -> float:
    """log(1 + e^value): of a margin, -log p(no)."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


_WAYS: dict[str, type[_Way]] = {way.name: way for way in (Likelihood, Letter, YesNo, Generate, Decide, Open)}


def as_ask(value: Ask | Mapping[str, Any] | str) -> Ask:
    """A way to ask from itself, from its config, or from its short form.

    Raises:
        ConfigError: there is no such way, or no such setting.

    >>> as_ask("yesno"), as_ask({"type": "Letter", "num_shifts": 1}).num_shifts
    (YesNo(prompt=None, prompts=None), 1)
    """
    classes = {way.__name__: way for way in _WAYS.values()}
    kind: Any = value
    settings: dict[str, Any] = {}
    if isinstance(value, Mapping):
        settings = dict(value)
        kind = settings.pop("type", None)
    if isinstance(kind, str) and kind in _WAYS | classes:
        try:
            made: Any = (_WAYS | classes)[kind](**settings)
        except TypeError as error:
            raise ConfigError(f"ask={value!r}: {error}") from error
        return made
    if isinstance(value, Ask):
        return value
    forms = ", ".join(f"{way.name!r}" for way in _WAYS.values())
    raise ConfigError(
        f"ask must be one of {forms}, or one of the classes {', '.join(classes)} with settings, such as "
        f"dict(type='Letter', num_shifts=1); got {value!r}"
    )
