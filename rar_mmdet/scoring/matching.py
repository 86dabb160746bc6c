"""Greedy matching of detections to annotations, over all (image, category) pairs at once.

Both reference APIs walk a pair's detections from the best score down; each takes the free annotation of highest IoU,
annotations that count before ignored ones, the later of two equals (`evaluate_img` of lvis-api 0.5.3, `evaluateImg` of
pycocotools 2.0.11). Here the n-th detections of all pairs take their turn together, under every threshold and area
range, and only pairs (edges) whose IoU reaches the lowest threshold are ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from rar_mmdet.errors import ResultFileError
from rar_mmdet.scoring.annotations import BoolArray, Detections, FloatArray, GroundTruth, IntArray
from rar_mmdet.scoring.masks import as_rle
from rar_mmdet.scoring.runs import blocks, expand
from rar_mmdet.scoring.settings import Protocol

__all__ = ["Edges", "Matches", "box_iou_xywh", "find_edges", "match"]

IOU_CEILING = 1 - 1e-10  # both APIs: a threshold of 1 must be reachable
CROSS_CHUNK = 1 << 20  # detection x annotation combinations whose IoU is held at once
EDGE_CHUNK = 1 << 17  # edges matched at once: times thresholds x areas booleans are held


@dataclass(frozen=True)
class Edges:
    """E overlaps of a detection and an annotation of one (image, category) pair, ordered by detection."""

    detection: IntArray  # (E,) row of the detections, which are ordered by pair and falling score
    annotation: IntArray  # (E,) row of the annotations
    iou: FloatArray  # (E,)


@dataclass(frozen=True)
class Matches:
    """What became of the D detections that overlap anything, for C = areas x thresholds settings."""

    detection: IntArray  # (D,) rows of the detections, ascending
    matched: BoolArray  # (D, C) took an annotation
    ignored: BoolArray  # (D, C) took an annotation that is to be ignored


def box_iou_xywh(detections: FloatArray, annotations: FloatArray, crowd: BoolArray) -> FloatArray:
    """IoU of boxes pair by pair, in the very order of operations of pycocotools' `bbIou` (common/maskApi.c).

    Args:
        detections: (P, 4) x, y, width, height.
        annotations: (P, 4) likewise.
        crowd: (P,) where true, the union is the detection's own area.

    Returns:
        (P,) overlap; 0 where the boxes do not intersect.
    """
    dx, dy, dw, dh = detections.T
    gx, gy, gw, gh = annotations.T
    width = np.minimum(dw + dx, gw + gx) - np.maximum(dx, gx)
    height = np.minimum(dh + dy, gh + gy) - np.maximum(dy, gy)
    area = dw * dh
    intersection = width * height
    union = np.where(crowd, area, area + gw * gh - intersection)
    overlaps = (width > 0) & (height > 0) & (union > 0)
    return np.divide(intersection, union, out=np.zeros(len(area)), where=overlaps)


def find_edges(detections: Detections, pair: IntArray, rank: IntArray, truth: GroundTruth, protocol: Protocol) -> Edges:
    """All overlaps at or above the lowest threshold.

    Args:
        detections: M detections ordered by pair, then falling score.
        pair: (M,) pair key of each, ascending.
        rank: (M,) place of each within its pair; those beyond the largest limit are left out.
        truth: The annotations.
        protocol: Thresholds and the kind of IoU.
    """
    truth_key = truth.pair_keys(truth.image, truth.category)
    truth_order = np.argsort(truth_key, kind="stable")
    keys, starts, counts = np.unique(truth_key[truth_order], return_index=True, return_counts=True)
    floor = min(float(np.min(protocol.iou_thrs)), IOU_CEILING)
    place = np.minimum(np.searchsorted(keys, pair), max(len(keys) - 1, 0))
    has_truth = (keys[place] == pair) if len(keys) else np.zeros(len(pair), bool)
    rows = np.flatnonzero(has_truth & (rank < protocol.max_dets[-1]))
    parts: list[tuple[IntArray, IntArray, FloatArray]] = []
    for block in blocks(counts[place[rows]], CROSS_CHUNK):
        chosen = rows[block]
        detection, at = expand(chosen, starts[place[chosen]], counts[place[chosen]])
        annotation = truth_order[at]
        if protocol.iou_type == "bbox":
            iou = box_iou_xywh(detections.boxes_xywh[detection], truth.boxes_xywh[annotation], truth.crowd[annotation])
        else:
            iou = _mask_iou(detections, detection, truth, annotation, pair[detection])
        keep = iou >= floor
        parts.append((detection[keep], annotation[keep], iou[keep]))
    if not parts:
        return Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Edges(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def match(edges: Edges, pair: IntArray, truth: GroundTruth, protocol: Protocol) -> Matches:
    """Match greedily under every area range and threshold.

    Args:
        edges: From `find_edges`.
        pair: (M,) pair key of each detection.
        truth: The annotations.
        protocol: Thresholds and area ranges; C runs over areas, then thresholds.
    """
    num_thrs, num_areas = len(protocol.iou_thrs), len(protocol.area_ranges)
    detection, first_edge = np.unique(edges.detection, return_index=True)
    matched = np.zeros((len(detection), num_areas * num_thrs), bool)
    ignored = np.zeros_like(matched)
    if not len(detection):
        return Matches(detection, matched, ignored)
    num_edges = np.diff(np.append(first_edge, len(edges.iou)))
    det_pair = pair[detection]
    new_pair = np.flatnonzero(np.diff(det_pair, prepend=det_pair[0] - 1))
    edges_per_pair = np.add.reduceat(num_edges, new_pair)
    dets_per_pair = np.diff(np.append(new_pair, len(detection)))
    for pairs in blocks(edges_per_pair, EDGE_CHUNK):
        lo, hi = new_pair[pairs.start], new_pair[pairs.stop - 1] + dets_per_pair[pairs.stop - 1]
        block = slice(first_edge[lo], first_edge[hi - 1] + num_edges[hi - 1])
        turn = np.arange(lo, hi) - np.repeat(new_pair[pairs], dets_per_pair[pairs])
        _match_block(
            Edges(edges.detection[block], edges.annotation[block], edges.iou[block]),
            turn,
            num_edges[lo:hi],
            truth,
            protocol,
            matched[lo:hi],
            ignored[lo:hi],
        )
    return Matches(detection, matched, ignored)


def _match_block(
    edges: Edges,
    turn: IntArray,
    num_edges: IntArray,
    truth: GroundTruth,
    protocol: Protocol,
    matched: BoolArray,
    ignored: BoolArray,
) -> None:
    """Match whole pairs; fills `matched` and `ignored` (D, C) of this block in place."""
    owner = np.repeat(np.arange(len(turn)), num_edges)
    nodes, node = np.unique(edges.annotation, return_inverse=True)
    # Within a turn, by detection, then rising IoU, then file order: the last free edge is the one the APIs would take.
    order = np.lexsort((edges.annotation, edges.iou, owner, turn[owner]))
    owner, node, iou = owner[order], node[order], edges.iou[order]
    skip = _ignored_by_area(truth, nodes, protocol)  # (nodes, C)
    reaches = iou[:, None] >= np.minimum(np.tile(protocol.iou_thrs, len(protocol.area_ranges)), IOU_CEILING)
    taken = np.zeros_like(skip)
    bounds = np.searchsorted(turn[owner], np.arange(int(turn.max()) + 2))
    for lo, hi in pairwise(bounds.tolist()):
        n, o = node[lo:hi], owner[lo:hi]
        starts = np.flatnonzero(np.diff(o, prepend=-1))
        # 0: not available; ignored annotations rank below all that count; later edges rank higher.
        preference = np.arange(1, hi - lo + 1, dtype=np.int32)[:, None] + np.where(skip[n], 0, hi - lo).astype(np.int32)
        preference *= reaches[lo:hi] & ~taken[n]
        best = np.maximum.reduceat(preference, starts, axis=0)  # (detections of this turn, C)
        who, setting = np.nonzero(best)
        winner = n[(best[who, setting] - 1) % (hi - lo)]
        taken[winner, setting] = ~truth.crowd[nodes[winner]]
        matched[o[starts[who]], setting] = truth.counts[nodes[winner]]
        ignored[o[starts[who]], setting] = skip[winner, setting]


def _ignored_by_area(truth: GroundTruth, rows: IntArray, protocol: Protocol) -> BoolArray:
    """(len(rows), areas x thresholds): annotation is flagged, or outside the area range."""
    ranges = np.array(protocol.area_ranges)
    area = truth.area[rows][:, None]
    outside = (area < ranges[:, 0]) | (area > ranges[:, 1]) | truth.ignore[rows][:, None]
    return np.repeat(outside, len(protocol.iou_thrs), axis=1)


def _mask_iou(
    detections: Detections, detection: IntArray, truth: GroundTruth, annotation: IntArray, pair: IntArray
) -> FloatArray:
    """IoU of masks by pycocotools, one call per (image, category) pair."""
    assert truth.segmentations is not None, "segm scoring needs GroundTruth with segmentations"
    iou = np.zeros(len(detection))
    rles: dict[int, Any] = {}
    for edges in np.split(np.arange(len(pair)), np.flatnonzero(np.diff(pair)) + 1):
        dets, gts = np.unique(detection[edges]), np.unique(annotation[edges])
        image = truth.image[gts[0]]
        hw = truth.image_hw[image].tolist()
        if 0 in hw:  # the file does not say; its masks then are run lengths, which carry their size
            hw = truth.segmentations[gts[0]]["size"]
        det_rles = [_detection_rle(detections, d, hw) for d in dets]
        for g in gts:
            if g not in rles:
                rles[g] = as_rle(truth.segmentations[g], hw)
        truth_rles = [rles[g] for g in gts]
        _check_sizes(det_rles, truth_rles, truth.image_ids[image])
        overlaps = mask_api.iou(det_rles, truth_rles, truth.crowd[gts].astype(np.uint8).tolist())
        iou[edges] = overlaps[np.searchsorted(dets, detection[edges]), np.searchsorted(gts, annotation[edges])]
    return iou


def _check_sizes(detected: list[Any], annotated: list[Any], image_id: Any) -> None:
    """pycocotools gives masks of unequal sizes an IoU of -1 without a word."""
    found, wanted = ({tuple(rle["size"]) for rle in rles} for rles in (detected, annotated))
    if len(found | wanted) > 1:
        raise ResultFileError(
            f"image {image_id}: masks of the detections are {_sizes(found)} and those of the annotations "
            f"{_sizes(wanted)} (height x width); all must have the size of the original photo"
        )


def _sizes(sizes: set[tuple[int, int]]) -> str:
    return ", ".join(f"{height} x {width}" for height, width in sorted(sizes))


def _detection_rle(detections: Detections, row: int, image_hw: Sequence[int]) -> Any:
    segmentation = None if detections.segmentations is None else detections.segmentations[row]
    if segmentation is None:  # both APIs: a box without a mask stands for its rectangle
        x, y, w, h = detections.boxes_xywh[row].tolist()
        segmentation = [[x, y, x, y + h, x + w, y + h, x + w, y]]
    return as_rle(segmentation, image_hw)
