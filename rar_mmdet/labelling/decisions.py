"""From the scores of phrases to one class, a broader one where the narrow one is unsure, or none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rar_mmdet.labelling.certainty import Certainty, FloatArray, logit, words_of
from rar_mmdet.labelling.words import NEVER_WRITTEN, WordList
from rar_mmdet.records import RegionRecord

__all__ = ["Choice", "Decision", "choices", "decide", "doubt", "signs_of"]


@dataclass(frozen=True)
class Decision:
    """What a region is called."""

    class_id: int | None  # `None`: nothing is written
    score: float  # of that class; where nothing is written, of the best one
    best: tuple[tuple[int, float], ...]  # (class, fused score) without what is never written, best first
    doubt: float = 1.0  # how much a person should look at it, from 0 to 1


@dataclass(frozen=True)
class Choice:
    """The classes a region may get: the best one, then those above it, the nearest first."""

    chain: tuple[tuple[int, float], ...]  # (class, score); none: it is nothing that may be written
    best: tuple[tuple[int, float], ...]  # as in `Decision`
    doubt: float  # of the best one
    learned: bool = False  # whether scores are probabilities, and doubt the rest of the best one's


def choices(records: Sequence[RegionRecord], words: WordList, certainty: Certainty | None = None) -> list[Choice]:
    """What the regions of one photo may be called, whatever score is asked for.

    A class's score is the sum of its phrases' fused scores, as they are names of one thing; a class above others also
    has theirs. With a `certainty` it is the probability that the label is right, and doubt is the rest of that.

    Args:
        records: of all regions of the photo; their labels are rows of `words.phrases`.
        words: the word list.
        certainty: learned from reviewed regions.
    """
    tellings = [_Telling(record, words) for record in records]
    beside = None if certainty is None else _beside(tellings)
    found = []
    for place, telling in enumerate(tellings):
        chain = telling.chain
        if certainty is None or beside is None:
            found.append(Choice(chain, telling.best, doubt(records[place], words, telling.best)))
            continue
        first = telling.best[0][0] if telling.best else None
        if first is None:
            found.append(Choice((), (), 1.0, learned=True))
            continue
        rows = words.ancestors(first)
        signs = np.array([telling.signs(row, beside[place]) for row in rows])
        sure = certainty.probability(signs, [words_of(words.classes[row]) for row in rows]).tolist()
        chain = tuple(zip(rows, sure, strict=True)) if chain else ()
        found.append(Choice(chain, telling.best, 1.0 - sure[0], learned=True))
    return found


def decide(choice: Choice, min_score: float) -> Decision:
    """Name a region: the best class if it has `min_score`; else the nearest one above it that has; else none.

    Where scores are probabilities, doubt is how likely that is wrong: where nothing is written, that the best class is
    right after all.

    Args:
        choice: of the region.
        min_score: in [0, 1].
    """
    for row, score in choice.chain:
        if score >= min_score:
            return Decision(row, score, choice.best, 1.0 - score if choice.learned else choice.doubt)
    score = choice.chain[0][1] if choice.chain else choice.best[0][1] if choice.best else 0.0
    return Decision(None, score, choice.best, 1.0 - choice.doubt if choice.learned else choice.doubt)


def signs_of(records: Sequence[RegionRecord], words: WordList) -> Iterator[tuple[int, FloatArray] | None]:
    """For each region of one photo its best class and (13,) `SIGNS` of it; nothing where it has none."""
    tellings = [_Telling(record, words) for record in records]
    for telling, beside in zip(tellings, _beside(tellings), strict=True):
        if not telling.best:
            yield None
        else:
            first = telling.best[0][0]
            yield first, np.array(telling.signs(first, beside))


class _Telling:
    """What a record says of classes."""

    def __init__(self, record: RegionRecord, words: WordList) -> None:
        self.record, self.words = record, words
        self.own: dict[int, float] = {}  # class -> score of its own phrases
        rival = 0.0
        for phrase, score in zip(record.category_ids, record.fused, strict=True):
            row = words.class_of[phrase]
            if row == NEVER_WRITTEN:
                rival = max(rival, score)
            else:
                self.own[row] = self.own.get(row, 0.0) + score
        self.best = tuple(sorted(((r, min(s, 1.0)) for r, s in self.own.items()), key=lambda pair: -pair[1]))
        # Nothing is written where a phrase that is never written scores best.
        beaten = not self.best or self.best[0][1] < rival
        self.chain = () if beaten else tuple((row, self._whole(row)) for row in words.ancestors(self.best[0][0]))

    def _whole(self, row: int) -> float:
        """Score of a class with those below it."""
        return min(sum(s for other, s in self.own.items() if row in self.words.ancestors(other)), 1.0)

    def signs(self, row: int, beside: FloatArray) -> list[float]:
        """`SIGNS` of a class as the label, in their order."""
        record, words = self.record, self.words
        whole = self._whole(row)
        other = max((s for r, s in self.own.items() if row not in words.ancestors(r)), default=0.0)
        ours = [
            column
            for column, phrase in enumerate(record.category_ids)
            if words.class_of[phrase] != NEVER_WRITTEN and row in words.ancestors(words.class_of[phrase])
        ]
        ranked = sorted(record.log_probs or (), reverse=True)
        said = sum(math.exp(record.log_probs[c]) for c in ours if c < len(ranked)) if record.log_probs else 0.5
        ahead = ranked[0] - ranked[1] if len(ranked) > 1 else 0.0
        x1, y1, x2, y2 = record.box_xyxy
        area = math.log(max((x2 - x1) * (y2 - y1), 1.0))
        chances = [
            whole,
            whole / max(whole + other, 1e-12),
            1.0 if record.presence is None else record.presence,
            record.box_score,
            sum(record.probs[column] for column in ours),
            said,
            1.0 if record.label_mass is None else record.label_mass,
        ]
        return [*logit(np.array(chances)).tolist(), ahead, area, *beside.tolist()]


def _beside(tellings: Sequence[_Telling]) -> FloatArray:
    """(R, 4) how each region lies to the others of its photo: the last four `SIGNS`."""
    if len(tellings) < 2:
        return np.zeros((len(tellings), 4))
    boxes = np.array([telling.record.box_xyxy for telling in tellings], float)
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared = sides.clip(0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(1e-6).prod(axis=1)
    np.fill_diagonal(shared, 0.0)
    overlap = shared / (areas[:, None] + areas[None] - shared)
    part = shared / areas[:, None]  # of the row's region that lies in the column's
    sure = np.array([t.best[0][1] * t.record.box_score if t.best else 0.0 for t in tellings])
    first = np.array([t.best[0][0] if t.best else -1 - place for place, t in enumerate(tellings)])
    surer = sure[None] > sure[:, None]
    same = first[None] == first[:, None]
    columns = [overlap * (surer & same), overlap * surer, part * surer, part.T]
    return np.stack([column.max(axis=1) for column in columns], axis=1)


def doubt(record: RegionRecord, words: WordList, best: Sequence[tuple[int, float]]) -> float:
    """How much a person should look at it, from 0 to 1, before anything was learned (ours).

    Certainty is the distance of the two best classes (nine tenths) and whether retrieval and the ranker agree (one
    tenth), times how sure the detector is that something is there; doubt is the rest.
    """
    if not best:
        return 1.0
    scores = [score for _, score in best[:2]]
    margin = min(scores[0] - (scores[1] if len(scores) > 1 else 0.0), 1.0)
    differ = record.has_opinion and words.class_of[record.category_ids[0]] != best[0][0]
    return 1.0 - (0.9 * margin + 0.1 * (not differ)) * record.box_score
