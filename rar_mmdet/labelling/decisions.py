"""From the scores of phrases to one class, a broader one where the narrow one is unsure, or none."""

from __future__ import annotations

from dataclasses import dataclass

from rar_mmdet.labelling.words import NEVER_WRITTEN, WordList
from rar_mmdet.records import RegionRecord

__all__ = ["Decision", "decide", "doubt"]


@dataclass(frozen=True)
class Decision:
    """What a region is called."""

    class_id: int | None  # `None`: nothing is written
    score: float  # of that class; where nothing is written, of the best one
    best: tuple[tuple[int, float], ...]  # (class, score) without what is never written, best first


def decide(record: RegionRecord, words: WordList, min_score: float) -> Decision:
    """Name a region.

    A class's score is the sum of its phrases' fused scores, as they are names of one thing. A class above others also
    has theirs. The best class wins if it has `min_score`; else the nearest one above it that has; else none, as where
    a phrase that is never written scores best.

    Args:
        record: of the region; its labels are rows of `words.phrases`.
        words: the word list.
        min_score: in [0, 1].
    """
    own: dict[int, float] = {}
    rival = 0.0
    for phrase, score in zip(record.category_ids, record.fused, strict=True):
        row = words.class_of[phrase]
        if row == NEVER_WRITTEN:
            rival = max(rival, score)
        else:
            own[row] = own.get(row, 0.0) + score
    best = tuple(sorted(((row, min(score, 1.0)) for row, score in own.items()), key=lambda pair: -pair[1]))
    if not best or best[0][1] < rival:
        return Decision(None, best[0][1] if best else 0.0, best)
    first, score = best[0]
    if score >= min_score:
        return Decision(first, score, best)
    for above in words.ancestors(first)[1:]:
        whole = min(sum(s for row, s in own.items() if above in words.ancestors(row)), 1.0)
        if whole >= min_score:
            return Decision(above, whole, best)
    return Decision(None, score, best)


def doubt(record: RegionRecord, words: WordList, decision: Decision) -> float:
    """How much a person should look at it, from 0 to 1 (ours).

    Certainty is the distance of the two best classes (nine tenths) and whether retrieval and the ranker agree (one
    tenth), times how sure the detector is that something is there; doubt is the rest. Of the demo's wrong labels the
    first quarter of the queue holds 80 % where boxes are given and 73 % where they are found.
    """
    if not decision.best:
        return 1.0
    scores = [score for _, score in decision.best[:2]]
    margin = min(scores[0] - (scores[1] if len(scores) > 1 else 0.0), 1.0)
    differ = record.has_opinion and words.class_of[record.category_ids[0]] != decision.best[0][0]
    return 1.0 - (0.9 * margin + 0.1 * (not differ)) * record.box_score
