"""Is one detector better than another? Differences with paired bootstrap intervals over images.

Images are drawn with replacement, the same ones for both result files; each draw is scored in full from the matches
that were made once (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rar_mmdet.scoring.annotations import FREQUENCIES, FloatArray, IntArray
from rar_mmdet.scoring.sparse_eval import MatchedDetections, curves

__all__ = ["Comparison", "Interval", "compare"]


@dataclass(frozen=True)
class Interval:
    """A difference, first minus other, and where 95 % of the resampled differences lie."""

    first: float
    other: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """first - other."""
        return self.first - self.other

    @property
    def is_clear(self) -> bool:
        """The interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Two result files on one test set."""

    numbers: dict[str, Interval]  # AP, AP50, AP75, APs, APm, APl and, for LVIS, APr, APc, APf
    per_category: list[Interval]  # K; NaN where the category has nothing to find


def compare(
    first: MatchedDetections,
    other: MatchedDetections,
    frequencies: tuple[str, ...] | None,
    *,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Comparison:
    """Compare matched detections of two detectors on the same annotations.

    Args:
        first: One detector.
        other: The other, matched under the same protocol against the same annotations.
        frequencies: "r", "c" or "f" of each category, or None.
        resamples: Draws of the test set.
        seed: Of the draws.
        level: Share of the draws inside the interval.
        track: Wraps the loop over draws, for a progress bar.
    """
    rng = np.random.default_rng(seed)
    numbers, categories = [], []
    for _ in track(range(resamples)):
        weights = np.bincount(rng.integers(0, first.num_images, first.num_images), minlength=first.num_images)
        a, b = _numbers(first, frequencies, weights), _numbers(other, frequencies, weights)
        numbers.append([a[0][key] - b[0][key] for key in a[0]])
        categories.append(a[1] - b[1])
    a, b = _numbers(first, frequencies, None), _numbers(other, frequencies, None)
    low, high = _quantiles(np.array(numbers).reshape(resamples, len(a[0])), level)
    category_low, category_high = _quantiles(np.array(categories).reshape(resamples, len(a[1])), level)
    return Comparison(
        numbers={key: Interval(a[0][key], b[0][key], float(low[i]), float(high[i])) for i, key in enumerate(a[0])},
        per_category=[
            Interval(float(x), float(y), float(lo), float(hi))
            for x, y, lo, hi in zip(a[1], b[1], category_low, category_high, strict=True)
        ],
    )


def _numbers(
    matches: MatchedDetections, frequencies: tuple[str, ...] | None, weights: IntArray | None
) -> tuple[dict[str, float], FloatArray]:
    """Summary numbers, NaN where undefined, and (K,) AP per category."""
    protocol = matches.protocol
    limit = protocol.max_dets[-1]
    numbers: dict[str, float] = {}
    per_category = np.zeros(0)
    for a, label in enumerate(protocol.area_labels):
        per_threshold = np.stack([curve.mean(axis=1) for curve, _ in curves(matches, a, limit, weights)])  # (T, K)
        per_threshold[:, _nothing_to_find(matches, a, weights)] = np.nan
        if a:
            numbers[f"AP{label[0]}"] = _mean(per_threshold)
            continue
        per_category = per_threshold.mean(axis=0)
        numbers["AP"] = _mean(per_threshold)
        for thr in (0.5, 0.75):
            numbers[f"AP{thr * 100:.0f}"] = _mean(per_threshold[protocol.iou_thrs == thr])
        if frequencies is not None:
            bins = np.array(frequencies)
            numbers |= {f"AP{letter}": _mean(per_threshold[:, bins == letter]) for letter in FREQUENCIES}
    return numbers, per_category


def _nothing_to_find(matches: MatchedDetections, a: int, weights: IntArray | None) -> IntArray:
    flags = matches.truth_counts[:, a]
    if weights is not None:
        flags = flags & (weights[matches.truth_image] > 0)
    return np.flatnonzero(np.bincount(matches.truth_category[flags], minlength=matches.num_categories) == 0)


def _mean(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")


def _quantiles(values: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    """Percentile interval of each column, over the draws in which it is defined."""
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    for i, column in enumerate(values.T):
        defined = column[~np.isnan(column)]
        if len(defined):
            low[i], high[i] = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return low, high
