"""Temperature, fusion weight and asking threshold from regions whose category is known. Fit on training images only.

All three look at regions whose truth is among the K candidates: elsewhere no order of the candidates is right. The
threshold below which a region gets no name looks at all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "auroc",
    "decisive_margin",
    "fit_temperature",
    "fit_weight",
    "fused_log_probs",
    "negative_log_likelihood",
    "precision_over_coverage",
    "threshold_for",
]

_STEPS = 30  # of golden section: the bracket shrinks to 5e-7 of its length
_GOLDEN = (5**0.5 - 1) / 2


def negative_log_likelihood(log_probs: Tensor, target: Tensor) -> float:
    """Mean of -log p(truth) in nats.

    Args:
        log_probs: (R, K), normalised or not.
        target: (R,) int64, column of the truth.
    """
    log_p = torch.log_softmax(log_probs.double(), dim=1)
    return -log_p.gather(1, target[:, None]).mean().item()


def fit_temperature(log_probs: Tensor, target: Tensor) -> float:
    """T that maximises the likelihood of softmax(log_probs / T) (arXiv 1706.04599), in [0.01, 100]."""
    log_t = _minimise(lambda x: negative_log_likelihood(log_probs / 10**x, target), -2.0, 2.0)
    return 10**log_t


def fused_log_probs(log_q: Tensor, log_p: Tensor, weight: float) -> Tensor:
    """(R, K) log of q^(1-weight) * p^weight, normalised over the candidates: `LogLikFusion` among the candidates."""
    return torch.log_softmax((1 - weight) * log_q.double() + weight * log_p.double(), dim=1)


def fit_weight(log_q: Tensor, log_p: Tensor, target: Tensor) -> float:
    """Weight in [0, 1] of the ranker's `log_p` beside retrieval's `log_q` that maximises the likelihood.

    The negative log-likelihood is convex in the weight (a log-sum-exp of linear functions), so the search is exact.
    """
    return _minimise(lambda w: negative_log_likelihood(fused_log_probs(log_q, log_p, w), target), 0.0, 1.0)


def decisive_margin(probs: Tensor, answered: Tensor, target: Tensor, tolerance: float = 0.001) -> tuple[float, float]:
    """The smallest retrieval margin above which asking may stop, and the share of regions that saves.

    Args:
        probs: (R, K) retrieval probabilities, best first.
        answered: (R,) column that wins when the ranker is asked.
        target: (R,) column of the truth, -1 where it is not among the candidates.
        tolerance: top-1 accuracy that may be lost, compared with asking about every region.

    Returns:
        margin and saving; (inf, 0) if no region can be spared.
    """
    margin = (probs[:, 0] - probs[:, 1]).double()
    order = margin.argsort(descending=True, stable=True)
    # Going down the margins, each region not asked about turns its answer back into retrieval's column 0.
    lost = ((answered == target).long() - (target == 0).long())[order].cumsum(0)
    # Regions of equal margin are spared together or not at all.
    last_of_tie = torch.cat([margin[order][1:] < margin[order][:-1], torch.ones(min(len(order), 1), dtype=torch.bool)])
    allowed = ((lost <= tolerance * len(order)) & last_of_tie).nonzero().flatten()
    if len(allowed) == 0:
        return float("inf"), 0.0
    spared = int(allowed[-1]) + 1
    return float(margin[order][spared - 1]), spared / len(order)


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores higher than a negative, ties counting half (Mann and Whitney 1947).

    Args:
        scores: (R,) numbers.
        positive: (R,) bool; NaN comes out unless there are some of both.
    """
    _, groups, sizes = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[groups]  # equal scores share their mean rank
    wins, losses = int(positive.sum()), int((~positive).sum())
    if wins == 0 or losses == 0:
        return float("nan")
    return float((ranks[positive].sum() - wins * (wins + 1) / 2) / (wins * losses))


def precision_over_coverage(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is named, and how much of that is right, at every threshold that can be set.

    Args:
        scores: (R,) the score of each region's best name.
        right: (R,) bool: whether that name is the truth; never where the truth is not in the vocabulary.

    Returns:
        (T,) thresholds, descending; (T,) coverage, the share of regions that score at least that; (T,) precision.
    """
    ranked, order = scores.double().sort(descending=True, stable=True)
    last_of_tie = torch.cat([ranked[1:] < ranked[:-1], torch.ones(min(len(ranked), 1), dtype=torch.bool)])
    named = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    precision = right[order].double().cumsum(0) / named
    return ranked[last_of_tie], (named / max(len(ranked), 1))[last_of_tie], precision[last_of_tie]


def threshold_for(precision: float, scores: Tensor, right: Tensor) -> tuple[float, float, float]:
    """The lowest threshold at which the names given are right often enough.

    Args:
        precision: wanted, in (0, 1].
        scores, right: see `precision_over_coverage`.

    Returns:
        threshold, coverage and precision there; (inf, 0, 1) if there is none.
    """
    thresholds, coverage, reached = precision_over_coverage(scores, right)
    enough = (reached >= precision).nonzero().flatten()
    if len(enough) == 0:
        return float("inf"), 0.0, 1.0
    last = int(enough[-1])
    return float(thresholds[last]), float(coverage[last]), float(reached[last])


def _minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search of a unimodal function; the ends count as well."""
    a, b = low, high
    left, right = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    at_left, at_right = function(left), function(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            b, right, at_right = right, left, at_left
            left = b - _GOLDEN * (b - a)
            at_left = function(left)
        else:
            a, left, at_left = left, right, at_right
            right = a + _GOLDEN * (b - a)
            at_right = function(right)
    return min((low, high, (a + b) / 2), key=function)
