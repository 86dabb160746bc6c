"""What went wrong: the six errors of TIDE and what each costs, without an array of detections by annotations.

Every detection that is no hit has one kind of error, every annotation that nothing could repair is missed, and the cost
of a kind is the gain in average precision (IoU 0.5) if all of that kind were mended: Bolya et al., "TIDE: A General
Toolbox for Identifying Object Detection Errors", ECCV 2020. Numbers equal its release (`tidecv` 1.0.1) on COCO-style
data, in its rules where the paper leaves room:

- A mended localisation or classification error becomes a hit only if its annotation was found by nothing, and of
  several that would repair one annotation the best scored does; the others are taken out.
- Detections inside a crowd of their class are neither hits nor false, but can repair an annotation.
- Of equal scores the false ones come first once something is mended. A gain below 0 is 0, but for `fp` and `fn`.
- A category that has detections and nothing to find counts as average precision 0.

Ours for federated annotations (LVIS), where the release approximates: such a category is left out, as in lvis-api.
Detections of categories that nobody looked for in the image, and spare ones where annotation is not exhaustive, are as
those inside crowds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.scoring.annotations import BoolArray, Detections, FloatArray, GroundTruth, IntArray, rows_of
from rar_mmdet.scoring.matching import box_iou_xywh
from rar_mmdet.scoring.pairing import image_rows
from rar_mmdet.scoring.runs import blocks, contains, expand, rank_in_run, run_starts
from rar_mmdet.scoring.settings import Protocol

__all__ = ["ERRORS", "MAX_PER_IMAGE", "MEANINGS", "ErrorReport", "find_errors"]

# What TIDE calls them; `fp` and `fn` are its two special ones.
MEANINGS = {
    "cls": "wrong category, IoU at least 0.5",
    "loc": "right category, IoU 0.1 to 0.5",
    "both": "wrong category, IoU 0.1 to 0.5",
    "dupe": "right, but a better scored detection has the object",
    "bkg": "nothing is there: IoU below 0.1",
    "miss": "objects that no detection of the kinds above would find",
    "fp": "all false detections ranked last",
    "fn": "all objects that were not found left out",
}
ERRORS = ("cls", "loc", "both", "dupe", "bkg", "miss")
HIT, CLS, LOC, BOTH, DUPE, BKG = range(6)
FOREGROUND, BACKGROUND = 0.5, 0.1  # the release's thresholds t_f and t_b
# Detections of an image that take part, its best: the release's for COCO and LVIS; V3Det's detectors give 300.
MAX_PER_IMAGE = {"coco": 100, "lvis": 300, "lvis-fixed": 300, "v3det": 300}
RECALLS = np.arange(101) / 100  # not linspace: some of its values are an ulp off
CROSS_CHUNK = 1 << 18  # detection x annotation combinations at once; larger ones leave the processor's cache
NOTHING = -1


@dataclass(frozen=True)
class ErrorReport:
    """Costs and numbers of errors."""

    average_precision: float  # mean over categories at IoU 0.5, of 1
    gains: dict[str, float]  # ΔAP of each of ERRORS, `fp` and `fn`, of 1
    counts: dict[str, int]  # detections (for `miss`: annotations) with each of ERRORS
    kinds: NDArray[np.int8]  # (N,) 0 a hit, else 1 + its place in ERRORS; -1 took no part
    annotations: IntArray  # (N,) row of the annotation that a hit found, or an error of cls or loc would; -1 for others

    def named(self) -> dict[str, float]:
        """For a table of numbers: `bbox_dAP_cls` and so on."""
        return {f"bbox_dAP_{name}": value for name, value in self.gains.items()}


def find_errors(truth: GroundTruth, detections: Detections, protocol: Protocol) -> ErrorReport:
    """Tell the errors of boxes apart and weigh them.

    Args:
        truth: annotations, read for this protocol (`federated`).
        detections: N of them, in the order of the result file, which settles ties.
        protocol: its name says how many detections an image may have, `federated` which rules hold.

    Raises:
        UnknownImageError: a detection is of an image the annotations do not have.
    """
    image = image_rows(truth, detections)
    order = np.lexsort((-detections.scores, image))
    order = order[rank_in_run(image[order]) < MAX_PER_IMAGE[protocol.name]]
    category = rows_of(detections.category_ids, truth.category_ids)
    order = order[category[order] >= 0]
    image, category, scores = image[order], category[order], detections.scores[order]
    overlaps = _find_overlaps(truth, detections.boxes_xywh[order], image, category)
    found, taken_by = _match(overlaps, len(order), len(truth))
    ignored = overlaps.in_crowd
    if protocol.federated:
        pair = truth.pair_keys(image, category)
        verified = np.union1d(truth.pair_keys(truth.image, truth.category), truth.negatives)
        ignored = ignored | ~contains(verified, pair) | contains(truth.not_exhaustive, pair)
    ignored &= found == NOTHING
    kind = _tell_apart(overlaps, found, taken_by)
    target = np.where(kind == LOC, overlaps.own, np.where(kind == CLS, overlaps.other, found))
    wanted = ~truth.ignore
    is_free = wanted & (taken_by == NOTHING)
    # The first, which is the best scored, of those that would repair a free annotation.
    repairs = np.flatnonzero((kind == CLS) | (kind == LOC))
    repairs = repairs[is_free[target[repairs]]]
    repaired, first = np.unique(target[repairs], return_index=True)
    winner = np.zeros(len(order), bool)
    winner[repairs[first]] = True
    is_missed = is_free.copy()
    is_missed[repaired] = False

    to_find = np.bincount(truth.category[wanted], minlength=truth.num_categories)
    hit = kind == HIT
    points = _Points(category, scores, hit, protocol.federated, to_find)
    whole = points.mean_ap(~ignored, hit)
    gains = {}
    for name, number in (("cls", CLS), ("loc", LOC), ("both", BOTH), ("dupe", DUPE), ("bkg", BKG)):
        mended = winner & (kind == number)
        kept = ~ignored & (kind != number) | mended
        becomes = None
        if number == CLS:
            becomes = category.copy()
            becomes[mended] = truth.category[target[mended]]
        gains[name] = points.mean_ap(kept, hit | mended, category=becomes, is_mended=True)
    missed = np.bincount(truth.category[is_missed], minlength=truth.num_categories)
    gains["miss"] = points.mean_ap(~ignored, hit, to_find=to_find - missed, is_mended=True)
    gains = {name: max(value - whole, 0.0) for name, value in gains.items()}
    free = np.bincount(truth.category[is_free], minlength=truth.num_categories)
    gains["fp"] = points.mean_ap(~ignored, hit, are_false_last=True, is_mended=True) - whole
    gains["fn"] = points.mean_ap(~ignored, hit, to_find=to_find - free, is_mended=True) - whole

    counts = np.bincount(kind, minlength=6)[1:].tolist()
    kinds = np.full(len(detections), NOTHING, np.int8)
    kinds[order] = kind
    annotations = np.full(len(detections), NOTHING, np.int64)
    annotations[order] = target
    return ErrorReport(
        average_precision=whole,
        gains=gains,
        counts=dict(zip(ERRORS, [*counts, int(is_missed.sum())], strict=True)),
        kinds=kinds,
        annotations=annotations,
    )


@dataclass(frozen=True)
class _Overlaps:
    """What N detections overlap. Annotations to be found are meant, but for the last; of equal overlaps the first."""

    own: IntArray  # (N,) annotation of its own category with the highest IoU, -1 where it overlaps none
    own_iou: FloatArray  # (N,)
    other: IntArray  # (N,) annotation of another category with the highest IoU, -1 likewise
    other_iou: FloatArray  # (N,)
    in_crowd: BoolArray  # (N,) more than the threshold of it lies in an ignored annotation of its category
    # Overlaps with the own category from the threshold on, by detection, then falling IoU, then annotation.
    edge_detection: IntArray  # (E,)
    edge_annotation: IntArray  # (E,)


def _find_overlaps(truth: GroundTruth, boxes_xywh: FloatArray, image: IntArray, category: IntArray) -> _Overlaps:
    """All detections of all images with all annotations of their image, some at a time."""
    num = len(image)
    own, other = np.full(num, NOTHING, np.int64), np.full(num, NOTHING, np.int64)
    own_iou, other_iou = np.zeros(num), np.zeros(num)
    in_crowd = np.zeros(num, bool)
    edges: list[tuple[IntArray, IntArray, FloatArray]] = []
    start = np.searchsorted(truth.image, np.arange(truth.num_images))
    count = np.bincount(truth.image, minlength=truth.num_images)
    rows = np.flatnonzero(count[image] > 0)
    low, high = boxes_xywh[:, :2].T.copy(), (boxes_xywh[:, :2] + boxes_xywh[:, 2:]).T.copy()
    low_truth = truth.boxes_xywh[:, :2].T.copy()
    high_truth = (truth.boxes_xywh[:, :2] + truth.boxes_xywh[:, 2:]).T.copy()
    for block in blocks(count[image[rows]], CROSS_CHUNK):
        chosen = rows[block]
        detection, annotation = expand(chosen, start[image[chosen]], count[image[chosen]])
        for axis in (0, 1):  # most boxes of a photo are apart in x already
            meets = (high[axis][detection] > low_truth[axis][annotation]) & (
                high_truth[axis][annotation] > low[axis][detection]
            )
            near = np.flatnonzero(meets)
            detection, annotation = detection[near], annotation[near]
        iou = box_iou_xywh(boxes_xywh[detection], truth.boxes_xywh[annotation], truth.ignore[annotation])
        is_own, is_wanted = truth.category[annotation] == category[detection], ~truth.ignore[annotation]
        in_crowd[detection[~is_wanted & is_own & (iou > FOREGROUND)]] = True
        for chosen_edges, best, best_iou in (
            (is_wanted & is_own, own, own_iou),
            (is_wanted & ~is_own, other, other_iou),
        ):
            d, a, value = detection[chosen_edges], annotation[chosen_edges], iou[chosen_edges]
            if not len(d):
                continue
            starts = run_starts(d)
            highest = np.maximum.reduceat(value, starts)
            is_highest = value == np.repeat(highest, np.diff(np.append(starts, len(d))))
            at, first = np.unique(d[is_highest], return_index=True)
            best[at], best_iou[at] = a[is_highest][first], highest
        reaching = is_wanted & is_own & (iou >= FOREGROUND)
        edges.append((detection[reaching], annotation[reaching], iou[reaching]))
    if edges:
        d, a, value = (np.concatenate(column) for column in zip(*edges, strict=True))
        by_overlap = np.lexsort((a, -value, d))
        d, a = d[by_overlap], a[by_overlap]
    else:
        d = a = np.zeros(0, np.int64)
    return _Overlaps(own, own_iou, other, other_iou, in_crowd, d, a)


def _match(overlaps: _Overlaps, num_detections: int, num_annotations: int) -> tuple[IntArray, IntArray]:
    """(N,) annotation that each detection took, and (G,) detection that took each; -1 for none.

    From the best score down each takes the annotation of its category that it overlaps most of those still free.
    """
    taken_by = [NOTHING] * num_annotations
    found = np.full(num_detections, NOTHING, np.int64)
    last = NOTHING
    for detection, annotation in zip(overlaps.edge_detection.tolist(), overlaps.edge_annotation.tolist(), strict=True):
        if detection != last and taken_by[annotation] == NOTHING:
            taken_by[annotation] = last = detection
            found[detection] = annotation
    return found, np.array(taken_by, np.int64)


def _tell_apart(overlaps: _Overlaps, found: IntArray, taken_by: IntArray) -> NDArray[np.int64]:
    """(N,) HIT, or the first kind of error that fits, in the release's order."""
    taken = np.zeros(len(found), bool)
    taken[overlaps.edge_detection[taken_by[overlaps.edge_annotation] != NOTHING]] = True
    own, other = overlaps.own_iou, overlaps.other_iou
    conditions = [
        found != NOTHING,
        (own >= BACKGROUND) & (own <= FOREGROUND),
        other >= FOREGROUND,
        taken,
        np.maximum(own, other) <= BACKGROUND,
    ]
    return np.select(conditions, [HIT, LOC, CLS, DUPE, BKG], default=BOTH)


class _Points:
    """N detections, from which curves of precision are made under several suppositions.

    Args:
        category: (N,) rows of categories.
        scores: (N,).
        hit: (N,) true positives as they are.
        only_annotated: leave categories with nothing to find out.
        to_find: (K,) annotations to be found.
    """

    def __init__(
        self, category: IntArray, scores: FloatArray, hit: BoolArray, only_annotated: bool, to_find: IntArray
    ) -> None:
        self.category, self.only_annotated, self.to_find = category, only_annotated, to_find
        # Place by falling score; once something is mended, of equal scores those that are no hits come first.
        self._place = _places(np.argsort(-scores, kind="stable"))
        self._place_mended = _places(np.lexsort((hit, -scores)))
        self._order, self._order_mended = self._sorted(category, False), self._sorted(category, True)

    def _sorted(self, category: IntArray, is_mended: bool) -> IntArray:
        place = self._place_mended if is_mended else self._place
        return np.argsort(category * len(category) + place)

    def mean_ap(
        self,
        kept: BoolArray,
        correct: BoolArray,
        *,
        category: IntArray | None = None,
        to_find: IntArray | None = None,
        are_false_last: bool = False,
        is_mended: bool = False,
    ) -> float:
        """Average precision, of 1, over categories that have a detection or something to find.

        Args:
            kept: (N,) detections that take part.
            correct: (N,) true positives.
            category: (N,) their categories, where changed.
            to_find: (K,) annotations to be found, where changed.
            are_false_last: false positives come after all others of their category, whatever their score.
            is_mended: something has been mended.
        """
        if category is not None:
            rows = self._sorted(category, is_mended)
        else:
            rows, category = self._order_mended if is_mended else self._order, self.category
        to_find = self.to_find if to_find is None else to_find
        rows = rows[kept[rows]]
        runs, is_hit = category[rows], correct[rows]
        hits = np.flatnonzero(is_hit)
        run = runs[hits]
        true = rank_in_run(run) + 1
        place = rank_in_run(runs)[hits] + 1
        false = np.zeros_like(true) if are_false_last else place - true
        known = to_find[run] > 0
        true, false, run = true[known], false[known], run[known]
        reached = np.searchsorted(RECALLS, true / to_find[run], side="right") - 1
        best = np.zeros((len(to_find), len(RECALLS)))
        key = run * len(RECALLS) + reached
        if len(key):
            starts = run_starts(key)
            best.reshape(-1)[key[starts]] = np.maximum.reduceat(true / (true + false), starts)
        precision = np.maximum.accumulate(best[:, ::-1], axis=1).mean(axis=1)
        present = (np.bincount(runs, minlength=len(to_find)) > 0) | (to_find > 0)
        if self.only_annotated:
            present &= self.to_find > 0
        return float(precision[present].mean()) if present.any() else 0.0


def _places(order: IntArray) -> IntArray:
    """Where each element stands in an order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place
