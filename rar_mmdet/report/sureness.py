"""How sure a run is: whether confidence tells right from wrong, and how well it keeps its promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Reliability",
    "RiskCoverage",
    "auroc",
    "brier",
    "calibration_error",
    "fit_temperature",
    "reliability",
    "risk_coverage",
    "roc",
    "tempered",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BINS = 15  # of equal mass; the number in common use since Guo et al., ICML 2017
RESAMPLES, FEWEST = 1000, 200  # for an interval; fewer where there are many answers, which vary little
RESAMPLED = 50_000_000  # answers in all
TEMPERATURES = np.exp(np.linspace(np.log(0.1), np.log(10), 401))  # searched for the best one (ours)
TINY = 1e-6


@dataclass(frozen=True)
class Reliability:
    """B bins of N answers in order of confidence, as many in each as can be."""

    confidence: FloatArray  # (B,) mean
    accuracy: FloatArray  # (B,) share that is right
    count: NDArray[np.int64]  # (B,)
    error: float  # expected calibration error: mean over answers of |confidence - accuracy| of their bin
    low: float  # 95 % of bootstrap resamples lie between these two
    high: float


@dataclass(frozen=True)
class RiskCoverage:
    """The share of wrong answers among the surest ones."""

    coverage: FloatArray  # (N,) rising, of 1
    risk: FloatArray  # (N,)

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC; Geifman and El-Yaniv, NeurIPS 2017)."""
        return float(self.risk.mean()) if len(self.risk) else float("nan")

    def coverage_at(self, precision: float) -> float:
        """The largest share of answers whose precision is at least that; 0 if there is none."""
        good = np.flatnonzero(1 - self.risk >= precision)
        return float(self.coverage[good[-1]]) if len(good) else 0.0


def reliability(confidence: FloatArray, correct: BoolArray, bins: int = BINS, seed: int = 0) -> Reliability:
    """Confidence against accuracy in bins of equal mass, which do not leave most bins empty as equal widths do.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,).
        bins: at most so many; fewer where there are fewer answers.
        seed: of the resamples of the interval. They are binned anew. Resampling adds noise, which can only enlarge an
            error, so the interval is that of the resamples around their mean, put around the error.
    """
    order = np.argsort(confidence, kind="stable")
    apart = (confidence - correct)[order]
    parts = np.array_split(order, max(1, min(bins, len(order))))
    rng = np.random.default_rng(seed)
    error = _error(apart, bins, np.ones(len(order), np.int64))
    draws = np.array(
        [
            _error(apart, bins, np.bincount(rng.integers(0, len(order), len(order)), minlength=len(order)))
            for _ in range(min(RESAMPLES, max(FEWEST, RESAMPLED // len(order))) if len(order) else 0)
        ]
    )
    low, high = error + np.quantile(draws - draws.mean(), [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return Reliability(
        np.array([confidence[p].mean() if len(p) else np.nan for p in parts]),
        np.array([correct[p].mean() if len(p) else np.nan for p in parts]),
        np.array([len(p) for p in parts]),
        error,
        max(float(low), 0.0),
        float(high),
    )


def calibration_error(confidence: FloatArray, correct: BoolArray, bins: int = BINS) -> float:
    """The expected calibration error alone, without its interval; NaN of nothing."""
    order = np.argsort(confidence, kind="stable")
    return _error((confidence - correct)[order], bins, np.ones(len(order), np.int64))


def _error(apart: FloatArray, bins: int, times: NDArray[np.int64]) -> float:
    """The error of answers in order of confidence, the i-th of them taken `times[i]` times.

    Args:
        apart: (N,) confidence less being right.
        bins: at most so many, as `np.array_split` makes them.
        times: (N,) whole numbers; of a resample their sum is N.
    """
    count = len(apart)
    if not count:
        return float("nan")
    # Sums of the first n answers, n being where a bin ends; an answer taken several times may stand on both sides.
    size, extra = divmod(count, min(bins, count))
    ends = np.cumsum([*([size + 1] * extra), *([size] * (min(bins, count) - extra))])
    taken, total = np.cumsum(times), np.cumsum(times * apart)
    row = np.searchsorted(taken, ends)
    sums = total[row] - (taken[row] - ends) * apart[row]
    return float(np.abs(np.diff(sums, prepend=0.0)).sum() / count)


def brier(confidence: FloatArray, correct: BoolArray) -> float:
    """Mean squared difference of confidence and being right (1 or 0); NaN of nothing."""
    return float(np.mean((confidence - correct) ** 2)) if len(confidence) else float("nan")


def risk_coverage(confidence: FloatArray, correct: BoolArray) -> RiskCoverage:
    """Risk of the n surest answers, n = 1 to N. Of equally sure ones each counts as the mean of all of them."""
    order = np.argsort(-confidence, kind="stable")
    values, inverse, counts = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = np.bincount(inverse, weights=~correct[order], minlength=len(values)) / np.maximum(counts, 1)
    number = np.arange(1, len(order) + 1)
    return RiskCoverage(number / max(len(order), 1), np.cumsum(wrong[inverse]) / number)


def auroc(scores: FloatArray, positive: BoolArray) -> float:
    """Probability that a positive has a higher score than a negative, ties being half; NaN where one kind is missing.

    The statistic of Mann and Whitney (1947).
    """
    num = int(positive.sum())
    if not 0 < num < len(positive):
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each value, from 1
    return float((rank[inverse][positive].sum() - num * (num + 1) / 2) / (num * (len(positive) - num)))


def fit_temperature(confidence: FloatArray, correct: BoolArray) -> float:
    """The T whose logit(confidence) / T is the best logit of being right, by likelihood.

    Above 1: it is too sure. Ours: records keep the first name's confidence, not the whole distribution, so this is the
    temperature of a yes-or-no question; NaN of nothing.
    """
    if not len(confidence):
        return float("nan")
    logit = _logit(confidence)
    sign = np.where(correct, 1.0, -1.0)
    losses = [float(np.logaddexp(0, -sign * logit / t).sum()) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def tempered(confidence: FloatArray, temperature: float) -> FloatArray:
    """What the confidences are once their logits are divided by a temperature."""
    return 1 / (1 + np.exp(-_logit(confidence) / temperature))


def _logit(confidence: FloatArray) -> FloatArray:
    clipped = np.clip(confidence, TINY, 1 - TINY)
    return np.log(clipped / (1 - clipped))


def roc(scores: FloatArray, positive: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share of negatives and share of positives at or above each score, from the highest score down, beginning at 0, 0.

    Args:
        scores: (N,).
        positive: (N,) both kinds must be there.
    """
    values, inverse = np.unique(-scores, return_inverse=True)
    above = [np.cumsum(np.bincount(inverse, weights=kind, minlength=len(values))) for kind in (~positive, positive)]
    return tuple(np.concatenate([[0.0], part / part[-1]]) for part in above)  # type: ignore[return-value]
