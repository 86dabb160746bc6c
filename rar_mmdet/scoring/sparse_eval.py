"""Average precision from the (image, category) pairs that have detections or annotations, and no others.

The arrays equal those of the reference APIs: `precision[t, r, k, a, m]` and `recall[t, k, a, m]` over IoU thresholds,
recall thresholds, categories, area ranges and detection limits; -1 where a category has nothing to find. LVIS has one
limit, so its arrays are compared after `[..., 0]`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rar_mmdet.scoring.annotations import BoolArray, Detections, FloatArray, GroundTruth, IntArray, rows_of
from rar_mmdet.scoring.category_tree import CategoryTree, add_ignored_ancestors
from rar_mmdet.scoring.matching import find_edges, match
from rar_mmdet.scoring.pairing import image_rows, note_on_categories, note_on_scores
from rar_mmdet.scoring.runs import best_of_each, contains, rank_in_run, run_starts, running_in_run
from rar_mmdet.scoring.settings import Protocol

__all__ = [
    "MatchedDetections",
    "SparseResult",
    "accumulate",
    "curves",
    "evaluate",
    "match_detections",
]

logger = logging.getLogger(__name__)

EPS = np.spacing(1)  # guards the division as in both APIs


@dataclass(frozen=True)
class MatchedDetections:
    """M detections ordered by category, then falling score; the D that overlap something carry their matches."""

    protocol: Protocol
    num_images: int
    num_categories: int
    num_truth: IntArray  # (K, areas) annotations to be found
    category: IntArray  # (M,) category row, ascending
    image: IntArray  # (M,) image row
    rank: IntArray  # (M,) place within the (image, category) pair
    false: BoolArray  # (M, areas) a false positive if it matched nothing
    edge: IntArray  # (D,) rows of the M, ascending
    matched: BoolArray  # (D, areas x thresholds)
    ignored: BoolArray  # (D, areas x thresholds) final: of matched and unmatched alike
    dropped: dict[str, int]  # why detections were left out, as in the reference API
    truth_image: IntArray  # (G,) image row of each annotation, for resampling
    truth_category: IntArray  # (G,)
    truth_counts: BoolArray  # (G, areas) it is to be found
    notes: tuple[str, ...] = ()  # what a person should know of the detections: sentences


@dataclass(frozen=True)
class SparseResult:
    """Precision and recall of every setting."""

    protocol: Protocol
    precision: FloatArray  # (T, R, K, A, M) or -1
    recall: FloatArray  # (T, K, A, M) or -1
    matches: MatchedDetections


def evaluate(
    truth: GroundTruth, detections: Detections, protocol: Protocol, tree: CategoryTree | None = None
) -> SparseResult:
    """Score detections.

    Args:
        truth: Annotations, read for this protocol (`federated`) and, for segm, with segmentations.
        detections: In the order of the result file, which settles ties.
        protocol: One of `LVIS`, `COCO`, `V3DET`, or a variation.
        tree: Forgive predictions of a descendant of the annotated category (V3Det's second protocol).

    Raises:
        UnknownImageError: A detection is of an image the annotations do not have.
        UnknownCategoryError: Category ids differ from those of the annotations in type only.
        ResultFileError: A detection's mask has another size than the annotations' in its image.
    """
    matches = match_detections(truth, detections, protocol, tree)
    precision, recall = accumulate(matches)
    return SparseResult(protocol, precision, recall, matches)


def match_detections(
    truth: GroundTruth, detections: Detections, protocol: Protocol, tree: CategoryTree | None = None
) -> MatchedDetections:
    """Filter, order and match detections; see `evaluate`."""
    category = rows_of(detections.category_ids, truth.category_ids)
    notes = [note_on_categories(truth, detections.category_ids, category), note_on_scores(detections)]
    detections, image, category, dropped = _select(truth, detections, protocol)
    if not protocol.use_categories:
        truth = truth.without_categories()
        category = np.zeros(len(category), np.int64)
    if tree is not None:
        truth = add_ignored_ancestors(truth, tree, truth.pair_keys(image, category))
    pair = truth.pair_keys(image, category)
    order = np.lexsort((-detections.scores, pair))  # stable: equal scores keep the order of the file
    detections, pair, image, category = detections.take(order), pair[order], image[order], category[order]
    rank = rank_in_run(pair)
    edges = find_edges(detections, pair, rank, truth, protocol)
    found = match(edges, pair, truth, protocol)
    outside = _forgiven(truth, detections.area, pair, protocol)
    ignored = found.ignored | (~found.matched & np.repeat(outside[found.detection], len(protocol.iou_thrs), axis=1))
    # Over images: falling score; equal scores by image id, then by rank (both APIs sort a concatenation over images).
    order = np.lexsort((-detections.scores, category))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    edge_order = np.argsort(place[found.detection])
    counts = _to_find(truth, protocol)
    return MatchedDetections(
        protocol=protocol,
        num_images=truth.num_images,
        num_categories=truth.num_categories,
        num_truth=_count_by(truth.category, counts, truth.num_categories),
        category=category[order],
        image=image[order],
        rank=rank[order],
        false=~outside[order],
        edge=place[found.detection][edge_order],
        matched=found.matched[edge_order],
        ignored=ignored[edge_order],
        dropped=dropped,
        truth_image=truth.image,
        truth_category=truth.category,
        truth_counts=counts,
        notes=tuple(note for note in notes if note is not None),
    )


def accumulate(matches: MatchedDetections) -> tuple[FloatArray, FloatArray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M) from matched detections."""
    protocol = matches.protocol
    num_thrs, num_areas, num_limits = len(protocol.iou_thrs), len(protocol.area_ranges), len(protocol.max_dets)
    shape = (num_thrs, len(protocol.rec_thrs), matches.num_categories, num_areas, num_limits)
    precision = np.full(shape, -1.0)
    recall = np.full((num_thrs, *shape[2:]), -1.0)
    for m, limit in enumerate(protocol.max_dets):
        for a in range(num_areas):
            present = matches.num_truth[:, a] > 0
            for t, (curve, reached) in enumerate(curves(matches, a, limit)):
                precision[t, :, present, a, m] = curve[present]
                recall[t, present, a, m] = reached[present]
    return precision, recall


def curves(
    matches: MatchedDetections, a: int, limit: int, weights: IntArray | None = None
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Precision at the recall thresholds (K, R), and recall (K,), for each IoU threshold.

    Categories with nothing to find get zeros.

    Args:
        matches: Matched detections.
        a: Row of the area range.
        limit: Detections that count in each (image, category) pair.
        weights: (I,) how often each image counts; once by default. Equals evaluating a test set in which images are
            repeated: copies of a detection follow one another, and within such a run precision is best at its end.
    """
    protocol, num_categories, num_recalls = matches.protocol, matches.num_categories, len(matches.protocol.rec_thrs)
    num_thrs = len(protocol.iou_thrs)
    times = np.ones(len(matches.category), np.int64) if weights is None else weights[matches.image]
    if limit <= matches.rank.max(initial=0):
        times = np.where(matches.rank < limit, times, 0)
    num_truth = _truth_counts(matches, a, weights)
    present = num_truth > 0
    settings = slice(a * num_thrs, (a + 1) * num_thrs)
    matched, counted = matches.matched[:, settings], ~matches.ignored[:, settings]
    # False positives so far in the category: those that overlap nothing, whatever the threshold, and those that do.
    lone = matches.false[:, a] * times
    lone[matches.edge] = 0
    lone_before = running_in_run(lone, matches.category)[matches.edge]
    category, edge_times = matches.category[matches.edge], times[matches.edge]
    for t in range(num_thrs):
        true = running_in_run(np.where(matched[:, t] & counted[:, t], edge_times, 0), category)
        false = running_in_run(np.where(~matched[:, t] & counted[:, t], edge_times, 0), category)
        hits = np.flatnonzero(matched[:, t] & counted[:, t] & (edge_times > 0))
        hit_category = category[hits]
        tp, fp = true[hits].astype(float), (lone_before[hits] + false[hits]).astype(float)
        value = tp / (fp + tp + EPS)
        reached = np.searchsorted(protocol.rec_thrs, tp / num_truth[hit_category], side="right") - 1
        # Best precision at this recall or beyond: group by the last threshold reached, then maximum from the right.
        best = np.zeros((num_categories, num_recalls))
        key = hit_category * num_recalls + reached
        if len(key):
            starts = run_starts(key)
            best.reshape(-1)[key[starts]] = np.maximum.reduceat(value, starts)
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
        found = np.bincount(hit_category, weights=edge_times[hits], minlength=num_categories)
        yield best, np.divide(found, num_truth, out=np.zeros(num_categories), where=present)


def _truth_counts(matches: MatchedDetections, a: int, weights: IntArray | None) -> IntArray:
    """(K,) annotations to be found."""
    if weights is None:
        return matches.num_truth[:, a]
    counts = np.where(matches.truth_counts[:, a], weights[matches.truth_image], 0)
    return np.bincount(matches.truth_category, weights=counts, minlength=matches.num_categories).astype(np.int64)


def _select(
    truth: GroundTruth, detections: Detections, protocol: Protocol
) -> tuple[Detections, IntArray, IntArray, dict[str, int]]:
    """Detections that take part, their image and category rows, and how many were left out for which reason."""
    image = image_rows(truth, detections)
    dropped: dict[str, int] = {}

    def keep(mask: BoolArray, reason: str) -> None:
        nonlocal detections, image
        if not mask.all():
            dropped[reason] = int(np.count_nonzero(~mask))
            detections, image = detections.take(mask), image[mask]

    if protocol.max_per_image is not None:
        keep(best_of_each(image, detections.scores, protocol.max_per_image), "beyond the limit per image")
    keep(rows_of(detections.category_ids, truth.category_ids) >= 0, "unknown category")
    if protocol.max_per_category is not None:
        category = rows_of(detections.category_ids, truth.category_ids)
        keep(best_of_each(category, detections.scores, protocol.max_per_category), "beyond the limit per category")
    if protocol.federated:
        area = detections.area
        keep((area > 0) & (area < np.inf), "no area")
        category = rows_of(detections.category_ids, truth.category_ids)
        annotated = truth.pair_keys(truth.image, truth.category)
        verified = np.union1d(annotated, truth.negatives)
        keep(contains(verified, truth.pair_keys(image, category)), "category not verified in the image")
    return detections, image, rows_of(detections.category_ids, truth.category_ids), dropped


def _forgiven(truth: GroundTruth, area: FloatArray, pair: IntArray, protocol: Protocol) -> BoolArray:
    """(M, areas): an unmatched detection is ignored: outside the range, or its category is annotated in part."""
    ranges = np.array(protocol.area_ranges)
    partly = contains(truth.not_exhaustive, pair)[:, None]
    return (area[:, None] < ranges[:, 0]) | (area[:, None] > ranges[:, 1]) | partly


def _to_find(truth: GroundTruth, protocol: Protocol) -> BoolArray:
    ranges = np.array(protocol.area_ranges)
    area = truth.area[:, None]
    return ~(truth.ignore[:, None] | (area < ranges[:, 0]) | (area > ranges[:, 1]))


def _count_by(category: IntArray, flags: BoolArray, num_categories: int) -> IntArray:
    counts = [np.bincount(category[flags[:, a]], minlength=num_categories) for a in range(flags.shape[1])]
    return np.stack(counts, axis=1)
