"""What a model is asked, the ways to do so, and what it said."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from rar_mmdet.rankers.prompts import Prompt
from rar_mmdet.structures import RankStatus

__all__ = ["Answer", "Ask", "Question", "Reading"]


@dataclass(frozen=True, eq=False)
class Question:
    """One crop and the candidates to tell apart, in the order the prompt shows them."""

    crop: Tensor  # (3, S, S) uint8 RGB
    candidates: tuple[str, ...]  # none for an open question
    words: str = ""  # an open question's own text; "": the prompt of the way to ask


@dataclass(frozen=True)
class Answer:
    """What a model said, before any interpretation, so that a better reading needs no new question.

    Attributes:
        scores: one row for each text that was shown (`Ask.texts`): 'likelihood' one row of K summed log-probabilities
            of the names; 'letter' K label log-probabilities for each of S orders; 'yesno' log p(yes) and log p(no) for
            each of K candidates; 'decide' K log-probabilities that are shared out among the candidates. Empty for text.
        lengths: 'likelihood': tokens of each name.
        reply: the text of 'generate', and of servers that give no log-probabilities.
        masses: one for each row of scores, where these do not say it: the probability, in [0, 1], of any of the labels
            (servers that list some tokens, or that share it out themselves); `None` for a row of which it is not known.
    """

    scores: tuple[tuple[float, ...], ...] = ()
    lengths: tuple[int, ...] = ()
    reply: str | None = None
    masses: tuple[float | None, ...] = ()

    def dump(self) -> str:
        """As JSON; floats survive the round trip bit for bit."""
        told = [self.masses] if self.masses else []  # left out where there is none, as in files of earlier versions
        return json.dumps([self.scores, self.lengths, self.reply, *told])

    @staticmethod
    def load(text: str) -> Answer:
        """From `dump`."""
        scores, lengths, reply, *told = json.loads(text)
        return Answer(tuple(tuple(row) for row in scores), tuple(lengths), reply, *map(tuple, told))

    @staticmethod
    def layout() -> list[str]:
        """Part of the key under which an answer is kept: what `dump` has always written. Masses came later, and
        answers without them are as good as they were."""
        return ["scores", "lengths", "reply"]


@dataclass(frozen=True)
class Reading:
    """What one answer says about the K candidates of its question, in the order in which they were shown."""

    order: tuple[int, ...]  # a permutation of 0..K-1, best first
    status: RankStatus
    scores: tuple[float, ...] | None = None  # K finite numbers, more is better; None where the answer is an order alone
    label_mass: float | None = None  # in [0, 1]: probability of any of the labels, before it is shared out among them
    presence: float | None = (
        None  # in [0, 1]: that any of the candidates is right, by what the answer says; None: nothing
    )
    reply: str | None = None  # the text, where the answer is one
    letters: tuple[str, ...] = ()  # the preferred letter for each text, in which candidates stand at other letters
    preferred: tuple[int, ...] = ()  # the best place by each text, where texts show the candidates in several orders
    problem: str | None = None  # why nothing of it can be used

    @staticmethod
    def of_scores(scores: Sequence[float], candidates: Sequence[str], **more: Any) -> Reading:
        """Candidates of one name get one score: rounding must not tell them apart."""
        scores = tuple(scores[candidates.index(name)] for name in candidates)
        k = len(scores)
        if all(map(math.isfinite, scores)):
            order = tuple(sorted(range(k), key=lambda column: -scores[column]))
            return Reading(order, RankStatus.OK, scores, **more)
        problem = (
            f"scores of {list(candidates)} are not finite: {list(scores)}; damaged weights, or a precision too small "
            "for the model (try dtype='float32' or 'bfloat16')"
        )
        return Reading(tuple(range(k)), RankStatus.FALLBACK, problem=problem)


@runtime_checkable
class Ask(Protocol):
    """A way to put one question to a model.

    Attributes:
        name: as in reports; the short form of `ask=`.
        wants: what a model has to give: the likelihood of each candidate's name behind the text ('names'), that of a
            few labels as the next token ('labels'), that of the candidates as options ('options'), or a text of its
            own ('text').
    """

    name: ClassVar[str]
    wants: ClassVar[str]

    @property
    def max_new_tokens(self) -> int | None:
        """The longest text reply in tokens; `None`: what the list of candidates needs."""
        ...

    @property
    def wording(self) -> Prompt:
        """The prompt, with its placeholders."""
        ...

    @property
    def max_candidates(self) -> int | None:
        """The largest K; `None`: any."""
        ...

    def shown_order(self, names: Sequence[str]) -> list[int]:
        """Columns of the K candidates in the order in which the prompt shows them."""
        ...

    def texts(self, question: Question) -> list[str]:
        """What the model is shown beside the crop, one text for each pass over it."""
        ...

    def labels(self, k: int) -> list[tuple[str, ...]]:
        """The labels that are told apart by the next token, each in all its spellings; empty unless 'labels'."""
        ...

    def target(self, question: Question, truth: int | Sequence[int]) -> list[str]:
        """What a trained model answers to each of `texts`.

        Args:
            question: the candidates as they are shown.
            truth: place of the right candidate in it, or all places, best first. An answer that names one candidate
                names the first; one that lists them all puts the others behind a single right one as they are shown.
        """
        ...

    def blanks(self, question: Question) -> list[Question]:
        """Further questions whose answers `read` needs, about a crop that shows nothing."""
        ...

    def check(self, answer: Answer, k: int) -> None:
        """Refuse an answer that cannot belong to K candidates asked about in this way.

        Raises:
            RankerError: it has too few or too many scores.
        """
        ...

    def read(self, answer: Answer, question: Question, blanks: Sequence[Answer] = ()) -> Reading:
        """What the answer says; total: an answer that says nothing keeps the shown order as a fallback."""
        ...

    def key(self) -> Mapping[str, Any]:
        """What changes an answer beside the texts and the model (JSON types)."""
        ...

    def report(self) -> dict[str, Any]:
        """How it asks, for the report of a run (JSON types)."""
        ...
