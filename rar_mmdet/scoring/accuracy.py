"""Top-1 accuracy with an interval, and whether one way is better than another on the same photos."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rar_mmdet.errors import MetricConfigError

__all__ = ["Accuracy", "PairedAccuracy", "accuracy", "compare_accuracy", "mcnemar"]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Accuracy:
    """A share of photos that are right, and where 95 % of its bootstrap resamples lie."""

    value: float
    low: float
    high: float
    count: int  # photos


@dataclass(frozen=True)
class PairedAccuracy:
    """Two ways on the same photos."""

    first: float
    other: float
    low: float  # of the difference, first - other
    high: float
    only_first: int  # photos that only the first has right
    only_other: int
    p_value: float  # McNemar's exact test, two-sided

    @property
    def difference(self) -> float:
        """first - other."""
        return self.first - self.other


def accuracy(correct: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Accuracy:
    """The share of true values, with a percentile bootstrap interval over photos.

    Q photos drawn with replacement, k of Q being right, hold a Binomial(Q, k / Q) number of right ones: that is drawn
    directly, and nothing is resampled (Efron and Tibshirani 1993, chapter 13).

    Args:
        correct: (Q,) booleans.
        level: of the interval.
        seed: of the draws.

    Raises:
        MetricConfigError: no photos, or other values than booleans.
    """
    right = _booleans(correct)
    count, hits = len(right), int(right.sum())
    draws = np.random.default_rng(seed).binomial(count, hits / count, RESAMPLES) / count
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Accuracy(hits / count, float(low), float(high), count)


def compare_accuracy(first: ArrayLike, other: ArrayLike, *, level: float = 0.95, seed: int = 0) -> PairedAccuracy:
    """The difference of two ways on the same photos, with a paired bootstrap interval and McNemar's exact test.

    Args:
        first: (Q,) booleans, photo by photo.
        other: (Q,) booleans of the same photos in the same order.
        level: of the interval.
        seed: of the draws.

    Raises:
        MetricConfigError: no photos, other values than booleans, or different numbers of photos.
    """
    a, b = _booleans(first), _booleans(other)
    if len(a) != len(b):
        raise MetricConfigError(f"{len(a)} photos of the first way and {len(b)} of the other; both must be of the same")
    count, gained, lost = len(a), int((a & ~b).sum()), int((~a & b).sum())
    shares = np.array([gained, lost, count - gained - lost]) / count
    draws = np.random.default_rng(seed).multinomial(count, shares, RESAMPLES)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / count, [(1 - level) / 2, (1 + level) / 2])
    return PairedAccuracy(
        float(a.mean()), float(b.mean()), float(low), float(high), gained, lost, mcnemar(gained, lost)
    )


def mcnemar(only_first: int, only_other: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947; the binomial test of the photos that differ).

    Args:
        only_first: photos that only the first way has right.
        only_other: photos that only the other has right.
    """
    total, fewer = only_first + only_other, min(only_first, only_other)
    if not total:
        return 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(fewer + 1)
    ]
    top = max(logs)
    return min(1.0, 2 * math.exp(top) * math.fsum(math.exp(value - top) for value in logs))


def _booleans(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype != np.bool_ or not len(array):
        raise MetricConfigError(
            f"accuracy takes (Q,) booleans, whether each photo is right, Q >= 1; got {array.shape} {array.dtype}"
        )
    return array
