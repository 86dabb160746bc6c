"""The knobs of Tip-Adapter and GDA chosen on a validation part, over their authors' grids; the first best wins.

Never give these the photos you report on. Both releases do so for ImageNet, which has no val part of its own; their
ImageNet numbers are therefore not comparable with fixed settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rar_mmdet.errors import FewShotError
from rar_mmdet.memory.few_shot import TEXT_SCALE, GaussianClassifier, gda_logits, tip_logits

__all__ = ["GDA_ALPHAS", "TIP_SCALE", "tune_gda", "tune_tip"]

GDA_ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # mrflogs/ICLR24, main_few_shots.py
TIP_STEPS = (200, 20)  # of beta and of alpha: gaopengcuhk/Tip-Adapter, configs, search_step
TIP_SCALE = (7.0, 3.0)  # the same configs, search_scale of ImageNet


def tune_gda(
    val_queries: Tensor,
    val_labels: Tensor,
    text_weights: Tensor,
    gda: GaussianClassifier,
    alphas: Sequence[float] = GDA_ALPHAS,
) -> float:
    """The first alpha with the most val photos right.

    Args:
        val_queries: (Q, D) unit vectors of the val part.
        val_labels: (Q,) int64.
        text_weights: (D, C) unit columns.
        gda: of `fit_gda`.
        alphas: to choose from, in order.

    Raises:
        FewShotError: no val photos or alphas, or vectors that do not fit.
    """
    _check(val_queries, val_labels, len(alphas))
    right = [_right(gda_logits(val_queries, text_weights, gda, alpha), val_labels) for alpha in alphas]
    return alphas[right.index(max(right))]


def tune_tip(
    val_queries: Tensor,
    val_labels: Tensor,
    keys: Tensor,
    labels: Tensor,
    text_weights: Tensor,
    *,
    scale: tuple[float, float] = TIP_SCALE,
    steps: tuple[int, int] = TIP_STEPS,
) -> tuple[float, float]:
    """The alpha and beta with the most val photos right; of equal ones the smaller beta, then the smaller alpha.

    The grid is the release's: beta = 0.1 + i (B - 0.1) / 200, alpha = 0.1 + j (A - 0.1) / 20. The exponentials are
    summed once for each beta and serve all alphas.

    Args:
        val_queries: (Q, D) unit vectors of the val part.
        val_labels: (Q,) int64.
        keys: (N, D), of `tip_keys`.
        labels: (N,) int64 in [0, C).
        text_weights: (D, C) unit columns.
        scale: B and A, the ends of the grid: `search_scale` of the release's configs, which differ from set to set.
        steps: numbers of betas and alphas.

    Returns:
        alpha, beta.

    Raises:
        FewShotError: no val photos, an empty grid, or vectors that do not fit.
    """
    _check(val_queries, val_labels, min(steps))
    if min(scale) <= 0:
        raise FewShotError(f"tune_tip: scale={scale} must be two numbers > 0, the ends of beta's and alpha's grid")
    text = TEXT_SCALE * (val_queries @ text_weights)
    nothing = torch.zeros_like(text_weights)
    best = (-1, 0.0, 0.0)
    for beta in _grid(scale[0], steps[0]):
        cache = tip_logits(val_queries, keys, labels, nothing, 1.0, beta)
        for alpha in _grid(scale[1], steps[1]):
            right = _right(text + alpha * cache, val_labels)
            if right > best[0]:
                best = (right, alpha, beta)
    return best[1], best[2]


def _grid(end: float, steps: int) -> list[float]:
    return [0.1 + step * (end - 0.1) / steps for step in range(steps)]


def _right(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())


def _check(queries: Tensor, labels: Tensor, choices: int) -> None:
    if not len(queries) or labels.shape != queries.shape[:1]:
        raise FewShotError(
            f"tuning takes val photos and a label for each: got {len(queries)} and {tuple(labels.shape)}"
        )
    if not choices:
        raise FewShotError("tuning: there is nothing to choose from; give at least one value")
