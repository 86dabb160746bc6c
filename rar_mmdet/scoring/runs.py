"""Arrays as runs of equal values, and work in blocks: what sparse scoring is made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rar_mmdet.scoring.annotations import BoolArray, FloatArray, IntArray

__all__ = ["best_of_each", "blocks", "contains", "expand", "rank_in_run", "run_starts", "running_in_run"]


def best_of_each(group: IntArray, scores: FloatArray, limit: int) -> BoolArray:
    """Keep the `limit` best of each image or category, earlier ones of equal score first.

    lvis-api's `limit_dets_per_image` is a stable sort too, as is the cut of the evaluators of fixed AP.
    """
    keep = np.ones(len(group), bool)
    if len(group) and np.bincount(group).max() > limit:
        order = np.lexsort((-scores, group))
        keep[order] = rank_in_run(group[order]) < limit
    return keep


def blocks(sizes: IntArray, limit: int) -> Iterator[slice]:
    """Consecutive slices whose sizes add up to about `limit`, each with at least one element."""
    total = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + limit, side="right")))
        yield slice(start, stop)
        start = stop


def contains(sorted_keys: IntArray, keys: IntArray) -> BoolArray:
    """(len(keys),) whether each is among the sorted ones."""
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[place] == keys


def expand(rows: IntArray, first: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
    """Each row beside each of its `count` consecutive partners from `first` on: two arrays of all pairs, by row."""
    left = np.repeat(rows, count)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    return left, np.repeat(first, count) + offset


def run_starts(values: IntArray) -> IntArray:
    """First index of each run of equal values."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), values[1:] != values[:-1]]))


def rank_in_run(values: IntArray) -> IntArray:
    """Place of each element within its run of equal values, from 0."""
    starts = run_starts(values)
    return np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))


def running_in_run(counts: IntArray, runs: IntArray) -> IntArray:
    """Running sum, this element included, starting anew with each run."""
    total = np.cumsum(counts)
    starts = run_starts(runs)
    before: IntArray = total[starts] - counts[starts]
    return total - np.repeat(before, np.diff(np.append(starts, len(runs))))
