"""Whether a trained ranker ranks: how often it is right, with the photo and without it, and what it chooses.

Two failures of trained multimodal LLMs look like success while the loss falls: a model that answers without looking,
and one that answers the same thing to everything. The first is right as often with blank photos; the second shows in
the counts of chosen places and names.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rar_mmdet.finetune.rows import TaughtQuestions
from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.questions import Answer, Question, Reading
from rar_mmdet.structures import RankStatus

__all__ = ["Look", "describe_checks", "look_at"]

BLANK = 127  # grey level of a photo that shows nothing
SHOWN_NAMES = 5  # most chosen names in the terminal


@dataclass(frozen=True)
class Look:
    """What a ranker chose, and what was right."""

    rank_one: float  # share of questions whose first answer is the right name; one without an answer is not right
    chance: float  # of guessing
    unread: int  # questions without a usable answer
    number: int
    places: dict[int, int]  # place of the chosen name in the list shown -> how often
    names: dict[str, int]  # chosen name -> how often, most frequent first

    def summary(self) -> dict[str, Any]:
        """JSON types."""
        return dataclasses.asdict(self)


@torch.inference_mode()
def look_at(ranker: AskingRanker, questions: TaughtQuestions, *, is_blank: bool = False) -> Look:
    """Ask a ranker its own way, and count.

    Its kept answers are neither used nor added to: they may be of weights that have changed.

    Args:
        ranker: whose way to ask is used.
        questions: rows with their photos; their ways to ask are not looked at.
        is_blank: whether a grey square stands for every photo.
    """
    asked, rights = [], []
    for index in range(len(questions)):
        question, order = questions.question(index, ranker.ask)
        if is_blank:
            question = Question(torch.full_like(question.crop, BLANK), question.candidates)
        asked.append(question)
        rights.append(order.index(questions.rows[index].truth))
    readings = _readings(ranker, asked)
    places: Counter[int] = Counter()
    names: Counter[str] = Counter()
    right = unread = 0
    for question, reading, truth in zip(asked, readings, rights, strict=True):
        if reading is None or reading.status is RankStatus.FALLBACK:
            unread += 1
            continue
        chosen = reading.order[0]
        right += chosen == truth
        places[chosen] += 1
        names[question.candidates[chosen]] += 1
    number = max(len(asked), 1)
    chance = sum(1 / len(question.candidates) for question in asked) / number
    return Look(right / number, chance, unread, len(asked), dict(sorted(places.items())), dict(names.most_common()))


def _readings(ranker: AskingRanker, questions: Sequence[Question]) -> list[Reading | None]:
    answers = _answers(ranker, questions)
    blanks = [ranker.ask.blanks(question) for question in questions]
    found = iter(_answers(ranker, [blank for row in blanks for blank in row]))
    read: list[Reading | None] = []
    for question, answer, row in zip(questions, answers, blanks, strict=True):
        beside = [next(found) or Answer() for _ in row]
        read.append(None if answer is None else ranker.ask.read(answer, question, beside))
    return read


def _answers(ranker: AskingRanker, questions: Sequence[Question]) -> list[Answer | None]:
    known: dict[int, Answer] = {}
    if questions:
        for fresh in ranker.answer(questions):
            known |= fresh
    return [known.get(index) for index in range(len(questions))]


def describe_checks(seen: Look, blank: Look) -> str:
    """The two checks in words, for people who wait for them."""
    lines = [
        f"rank-1 on {seen.number} held-out questions: {100 * seen.rank_one:.1f} % "
        f"(chance {100 * seen.chance:.1f} %; {seen.unread} without a usable answer)",
        f"the same with blank photos: {100 * blank.rank_one:.1f} %" + _verdict(seen, blank),
        "place of the chosen name in the list shown:",
    ]
    most = max(seen.places.values(), default=1)
    lines += [f"  {place + 1:>3} {count:>6}  {'#' * round(40 * count / most)}" for place, count in seen.places.items()]
    chosen = list(seen.names.items())[:SHOWN_NAMES]
    lines.append(f"{len(seen.names)} different names chosen; most often {', '.join(f'{n} ({c})' for n, c in chosen)}")
    return "\n".join(lines)


def _verdict(seen: Look, blank: Look) -> str:
    """Three standard errors above chance are no accident (ours)."""
    error = (blank.chance * (1 - blank.chance) / max(blank.number, 1)) ** 0.5
    if blank.rank_one > blank.chance + 3 * error:
        return ": above chance. The answer can be told without the photo; look at the data before the model"
    if seen.rank_one <= seen.chance + 3 * error:
        return ". With the photo it is no better than chance: the model has not learned to rank"
    return ": as it should be, no better than chance"
