"""From a shortlist and a ranking to one score per (region, category), and from those to the detections of an image.

Retrieval gives q, a softmax over the full vocabulary; the ranker has an opinion on the K best of each region. Every
fusion keeps the mass m = sum of q over the K candidates and leaves the other columns alone: the tail is worth about
20 AP under LVIS's federated scoring (our simulation), and a region's mass is what makes scores comparable across boxes.
Rows in which the ranker has no opinion stay as retrieval left them.

What a detector says of its own classes is no answer to a question but evidence like retrieval's: it is pooled with q
before the ranker is asked, so that its names can become candidates. How sure the detector is that a box shows anything
at all joins last, in the emission (`box_score_weight`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rar_mmdet.structures import Ranking, Shortlist

__all__ = ["DetectorFusion", "Fusion", "LogLikFusion", "LogPool", "NoneOfThese", "PermuteFusion", "RankFusion"]


class Fusion(Protocol):
    """One score per (region, shortlist column)."""

    def __call__(self, shortlist: Shortlist, ranking: Ranking) -> Tensor:
        """(R, N) float32 scores, columns as in `shortlist`; the sum of each row is unchanged, or becomes less."""
        ...


def _replace_candidates(shortlist: Shortlist, ranking: Ranking, weights: Tensor) -> Tensor:
    """Give the K candidates `weights` (R, K), rescaled to their old mass, in rows where the ranker has an opinion."""
    k = ranking.order.shape[1]
    probs = shortlist.probs.clone()
    old = probs[:, :k].double()
    # A row whose weights all underflow carries no information beyond retrieval.
    total = weights.sum(dim=1, keepdim=True)
    usable = ranking.has_opinion.to(probs.device)[:, None] & (total > 0) & total.isfinite()
    new = weights * (old.sum(dim=1, keepdim=True) / total.clamp_min(torch.finfo(torch.float64).tiny))
    probs[:, :k] = torch.where(usable, new.to(probs.dtype), probs[:, :k])
    return probs


def _ranks(order: Tensor) -> Tensor:
    """(R, K) rank of each shortlist column, 0 = best: the inverse permutation of `order`."""
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


@dataclass(frozen=True)
class RankFusion:
    """q'_c proportional to q_c * exp(-beta * rank_c), for rankers that only give an order.

    Ours; `beta` 0.6 is the best of our simulation.
    """

    beta: float = 0.6

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"RankFusion.beta must be >= 0, got {self.beta}; 0 keeps retrieval as it is")

    def __call__(self, shortlist: Shortlist, ranking: Ranking) -> Tensor:
        if self.beta == 0:
            return shortlist.probs.clone()
        ranks = _ranks(ranking.order).to(shortlist.probs.device)
        weights = shortlist.probs[:, : ranks.shape[1]].double() * torch.exp(-self.beta * ranks.double())
        return _replace_candidates(shortlist, ranking, weights)


@dataclass(frozen=True)
class LogLikFusion:
    """q'_c proportional to q_c^(1-alpha) * p_c^alpha with p = softmax(log_probs / temperature).

    Ours; a geometric mean of two classifiers, as open-vocabulary detectors use it (F-ViT, arXiv 2310.01403).
    Rows without log-probabilities are fused by `RankFusion(beta)`, whatever their neighbours have.
    """

    alpha: float = 0.3
    temperature: float = 1.0
    beta: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"LogLikFusion.alpha must be in [0, 1], got {self.alpha}; 0 keeps retrieval as it is")
        if not self.temperature > 0:
            raise ValueError(f"LogLikFusion.temperature must be > 0, got {self.temperature}")

    def __call__(self, shortlist: Shortlist, ranking: Ranking) -> Tensor:
        if ranking.log_probs is None:
            return RankFusion(self.beta)(shortlist, ranking)
        order_alone = ranking.log_probs.isnan().any(dim=1).to(shortlist.probs.device)
        if order_alone.any():
            by_rank = RankFusion(self.beta)(shortlist, ranking)
            known = replace(ranking, log_probs=ranking.log_probs.nan_to_num(0.0))
            return torch.where(order_alone[:, None], by_rank, self(shortlist, known))
        if self.alpha == 0:
            return shortlist.probs.clone()
        log_p = torch.log_softmax(ranking.log_probs.to(shortlist.probs.device).double() / self.temperature, dim=1)
        log_q = shortlist.probs[:, : log_p.shape[1]].double().log()
        # 0 * -inf is nan: a weight of zero must drop its factor, and q = 0 must stay 0.
        logits = self.alpha * log_p + ((1 - self.alpha) * log_q if self.alpha < 1 else 0.0)
        peak = logits.amax(dim=1, keepdim=True) if logits.shape[1] else logits
        return _replace_candidates(shortlist, ranking, torch.exp(logits - peak).nan_to_num(0.0))


@dataclass(frozen=True)
class NoneOfThese:
    """The scores of another fusion times presence^weight, so that a threshold can leave regions without a name.

    p(c) = p(any of the candidates) p(c | one of them), with `Ranking.presence` for the first factor. A region of which
    the ranker says nothing keeps its scores: ask about all of them (decisive_margin=None) where a threshold follows.
    Ours; measured in docs/rankers.md.
    """

    fusion: Fusion = LogLikFusion()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"NoneOfThese.weight must be >= 0, got {self.weight}; 0 keeps the scores as they are")

    def __call__(self, shortlist: Shortlist, ranking: Ranking) -> Tensor:
        scores = self.fusion(shortlist, ranking)
        if ranking.presence is None:
            return scores
        presence = torch.where(ranking.has_opinion, ranking.presence, torch.nan).nan_to_num(1.0).clamp(0.0, 1.0)
        return scores * presence.pow(self.weight).to(scores)[:, None]


@dataclass(frozen=True)
class PermuteFusion:
    """The K candidates' scores, sorted, are handed out in the ranker's order.

    The paper's re-ordering (arXiv 2403.13805, section 3.3); the set of scores of a region does not change.
    """

    def __call__(self, shortlist: Shortlist, ranking: Ranking) -> Tensor:
        ranks = _ranks(ranking.order).to(shortlist.probs.device)
        probs = shortlist.probs.clone()
        k = ranks.shape[1]
        permuted = probs[:, :k].sort(dim=1, descending=True).values.gather(1, ranks)
        probs[:, :k] = torch.where(ranking.has_opinion.to(probs.device)[:, None], permuted, probs[:, :k])
        return probs


class DetectorFusion(Protocol):
    """Retrieval and a detector's own class scores as one shortlist."""

    def __call__(self, shortlist: Shortlist, class_scores: Tensor) -> Shortlist:
        """The same categories of each region, best first by both.

        Args:
            shortlist: (R, N) of retrieval.
            class_scores: (R, N) float32 in [0, 1], the detector's score of each category; NaN where it knows no such
                class.
        """
        ...


@dataclass(frozen=True)
class LogPool:
    """p_c proportional to q_c^(1-weight) * d_c^weight, with the mass of q: a logarithmic opinion pool.

    Genest and Zidek, Combining probability distributions, Statistical Science 1 (1986); the geometric mean of two
    classifiers that open-vocabulary detectors use (F-VLM, arXiv 2209.15639, with a weight each for known and other
    names; here other names have a score instead). `rar-mmdet calibrate detector` fits weight and unknown.

    Args:
        weight: of the detector, in [0, 1]; 0 keeps retrieval as it is.
        unknown: d of a category that is none of the detector's classes, in (0, 1].
        floor: the least d of one of its classes, in (0, 1] (ours: 0.01, below which `TransformersDetector` tells no
            scores): no class is ruled out by a detector alone.
    """

    weight: float = 0.3
    unknown: float = 0.1
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"LogPool.weight must be in [0, 1], got {self.weight}; 0 keeps retrieval as it is")
        for name, value in (("unknown", self.unknown), ("floor", self.floor)):
            if not 0 < value <= 1:
                raise ValueError(f"LogPool.{name} must be in (0, 1], got {value}")

    def __call__(self, shortlist: Shortlist, class_scores: Tensor) -> Shortlist:
        if self.weight == 0:
            return shortlist
        logits = self.logits(shortlist.probs.double().log(), class_scores)
        mass = shortlist.probs.double().sum(dim=1, keepdim=True)
        probs = torch.softmax(logits, dim=1).nan_to_num(0.0) * mass
        probs, columns = probs.to(shortlist.probs.dtype).sort(dim=1, descending=True, stable=True)
        return Shortlist(shortlist.category_ids.gather(1, columns), probs)

    def logits(self, log_q: Tensor, class_scores: Tensor) -> Tensor:
        """(R, N) float64: log p of every category, not normalised."""
        log_d = self.log_scores(class_scores)
        # 0 * -inf is nan: a weight of zero must drop its factor, and q = 0 must stay 0.
        return (1 - self.weight) * log_q + self.weight * log_d if self.weight < 1 else log_d

    def log_scores(self, class_scores: Tensor) -> Tensor:
        """(R, N) float64: log d of every category."""
        return class_scores.double().clamp_min(self.floor).nan_to_num(self.unknown).log()
