"""From raw scores to log-probabilities over the candidates: length, prior, position and temperature, each on its own.

Everything here is arithmetic on float64 tensors and knows no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "apply_temperature",
    "cyclic_shifts",
    "likelihood_scores",
    "undo_cyclic_shifts",
    "yes_margin",
]


def likelihood_scores(
    sums: Tensor, lengths: Tensor, score: str, null_sums: Tensor | None = None, pmi_weight: float = 1.0
) -> Tensor:
    """Candidate scores from summed token log-probabilities.

    Args:
        sums: (R, K) log p(name | image, prompt), summed over the name's tokens.
        lengths: (R, K) number of those tokens.
        score: 'sum' (favours short names), 'mean' per token (as Qwen-VL's own evaluation), or 'pmi'.
        null_sums: (R, K) the same sums for a blank crop; 'pmi' only.
        pmi_weight: a in log p(name | image) - a * log p(name | blank) (VisualGPTScore, arXiv 2306.01879).
    """
    if score == "sum":
        return sums
    if score == "mean":
        return sums / lengths.clamp_min(1)
    if score == "pmi":
        assert null_sums is not None, "pmi needs the scores of a blank crop"
        return sums - pmi_weight * null_sums
    raise ValueError(f"score must be 'sum', 'mean' or 'pmi', got {score!r}")


def cyclic_shifts(k: int, num_shifts: int) -> list[list[int]]:
    """`num_shifts` orders of K candidates, evenly spread: position p of shift s shows candidate (p + offset_s) mod K.

    With num_shifts = K every candidate stands once in every position.

    >>> cyclic_shifts(3, 3)
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    offsets = [s * k // num_shifts for s in range(min(num_shifts, k))]
    return [[(position + offset) % k for position in range(k)] for offset in offsets]


def undo_cyclic_shifts(label_scores: Tensor, shifts: list[list[int]]) -> Tensor:
    """(R, K) mean log-probability of each candidate from (R, S, K) label log-probabilities under S shifts.

    Each shift is normalised over its labels first. Over all K shifts a prior of the labels (arXiv 2309.03882: models
    prefer some letters) adds the same constant to every candidate and so drops out of the softmax.
    """
    per_shift = torch.log_softmax(label_scores.double(), dim=-1)
    by_candidate = torch.stack(
        [row[..., torch.tensor(shift).argsort()] for row, shift in zip(per_shift.unbind(-2), shifts, strict=True)]
    )
    return by_candidate.mean(dim=0)


def yes_margin(yes_no: Tensor) -> Tensor:
    """(R, K) log p(yes) - log p(no) from (R, 2, K): absolute evidence, comparable across regions.

    Its sigmoid is VQAScore, p(yes) / (p(yes) + p(no)) (arXiv 2404.01291). A softmax over it is the posterior when
    exactly one candidate is right and the answers are independent: p_j * prod_i!=j (1 - p_i) is proportional to the
    odds of j.
    """
    return yes_no[..., 0, :] - yes_no[..., 1, :]


def apply_temperature(scores: Tensor, temperature: float) -> Tensor:
    """(R, K) float32 log-probabilities: log_softmax(scores / temperature), temperature > 0."""
    return torch.log_softmax(scores.double() / temperature, dim=-1).float()
