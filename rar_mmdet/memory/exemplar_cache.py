"""Exemplars beside a memory of texts: what a vocabulary looks like, added to what its words say.

Tip-Adapter's cache (Zhang et al., ECCV 2022, equations 3 to 6) on the log-probabilities of any memory. A category
without exemplars keeps what its words give it, and with `alpha` 0 everything stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rar_mmdet.memory.base import Shortlister
from rar_mmdet.memory.exact import best_first
from rar_mmdet.memory.few_shot import tip_logits
from rar_mmdet.structures import Shortlist

__all__ = ["ExemplarCache", "fit_cache"]

ALPHAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # grids of `fit_cache` (ours)
BETAS = (1.0, 5.5, 15.0, 30.0)
USUAL = (1.0, 5.5)  # alpha and beta of Tip-Adapter's paper, where there is nothing to fit them on
MOST = 2000  # exemplars that are looked at, the last ones: all pairs of them are compared (ours)
LEAST = 8  # exemplars with another one of their category, from which on there is something to fit (ours)


@dataclass(frozen=True)
class ExemplarCache:
    """A `Shortlister`: log p of another one, plus alpha Σ exp(-beta (1 - x·k)) over the exemplars of a category."""

    base: Shortlister
    num_categories: int  # C
    keys: Tensor  # (N, D) float32 unit vectors
    labels: Tensor  # (N,) int64 in [0, C)
    alpha: float = USUAL[0]
    beta: float = USUAL[1]

    @torch.inference_mode()
    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable categories of each of (R, D) unit vectors; see `Shortlister`."""
        logits = full_log_probs(self.base, queries, self.num_categories) + self._extra(queries)
        ids, values = best_first(torch.log_softmax(logits, dim=1), min(depth, self.num_categories))
        return Shortlist(ids, values.clamp_(max=0).exp_())

    def _extra(self, queries: Tensor) -> Tensor:
        """(R, C) what the exemplars add."""
        nothing = queries.new_zeros((queries.shape[1], self.num_categories), dtype=torch.float32)
        keys, labels = self.keys.to(queries.device), self.labels.to(queries.device)
        return tip_logits(queries.float(), keys, labels, nothing, self.alpha, self.beta)


def full_log_probs(base: Shortlister, queries: Tensor, num_categories: int) -> Tensor:
    """(R, C) float32 log-probabilities of all categories."""
    found = base.search(queries, num_categories)
    floor = torch.finfo(torch.float32).tiny  # what a softmax lost in rounding
    logs = found.probs.float().clamp_min(floor).log()
    return torch.full_like(logs, float(torch.tensor(floor).log())).scatter_(1, found.category_ids, logs)


@torch.inference_mode()
def fit_cache(
    base: Shortlister, num_categories: int, keys: Tensor, labels: Tensor, groups: Tensor
) -> tuple[float, float]:
    """alpha and beta that make the exemplars themselves most likely, each seen without those of its own group.

    Args:
        base: the memory that they are added to.
        num_categories: C.
        keys: (N, D) unit vectors.
        labels: (N,) int64 in [0, C).
        groups: (N,) int64; exemplars of one photo are of one group, for they look alike.

    Returns:
        alpha and beta of a small grid, alpha 0 where exemplars do not help; Tip-Adapter's usual ones where too few
        exemplars have company to tell.
    """
    keys, labels, groups = keys[-MOST:], labels[-MOST:], groups[-MOST:]
    together = labels[:, None] == labels[None]
    apart = groups[:, None] != groups[None]
    if int((together & apart).any(dim=1).sum()) < LEAST:
        return USUAL
    logs = full_log_probs(base, keys, num_categories)
    cosines = keys @ keys.T
    best = (float("inf"), 0.0, USUAL[1])
    for beta in BETAS:
        near = torch.exp(-beta * (1 - cosines)) * apart
        extra = torch.zeros_like(logs).index_add_(1, labels, near)
        for alpha in ALPHAS:
            loss = float(torch.nn.functional.cross_entropy(logs + alpha * extra, labels))
            if loss < best[0] - 1e-6:  # of equal ones the first, which changes less
                best = (loss, alpha, beta)
    return best[1], best[2]
