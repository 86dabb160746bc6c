"""Where ranking helps and where it harms, what was lost at which stage, and what the order of a prompt does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.report.runs import Run

__all__ = ["Change", "OrderEffect", "change_by", "losses", "margin_groups", "order_effect", "size_groups"]

BoolArray = NDArray[np.bool_]
# COCO's areas, square pixels.
SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, float("inf")))
QUANTILES = 5


@dataclass(frozen=True)
class Change:
    """What ranking did to a group of regions with an annotated object."""

    group: str
    count: int
    before: float  # share whose first name was right by retrieval
    after: float  # after ranking
    improved: float  # share that ranking made right
    harmed: float  # share that ranking made wrong


def change_by(run: Run, groups: dict[str, BoolArray]) -> list[Change]:
    """The change in each group; groups without any object are left out.

    Args:
        run: the regions.
        groups: name -> (N,) which regions.
    """
    found = []
    before, after = run.retrieval.correct, run.fused.correct
    for name, members in groups.items():
        rows = members & run.has_truth
        if rows.any():
            found.append(
                Change(
                    name,
                    int(rows.sum()),
                    float(before[rows].mean()),
                    float(after[rows].mean()),
                    float((after & ~before)[rows].mean()),
                    float((before & ~after)[rows].mean()),
                )
            )
    return found


def size_groups(run: Run) -> dict[str, BoolArray]:
    """By the area of the box."""
    return {name: (run.area >= low) & (run.area < high) for name, low, high in SIZES}


def margin_groups(run: Run) -> dict[str, BoolArray]:
    """Fifths of the regions by retrieval's margin, the least sure ones first."""
    rows = np.flatnonzero(run.has_truth)
    order = rows[np.argsort(run.margin[rows], kind="stable")]
    groups = {}
    for part in np.array_split(order, min(QUANTILES, max(len(order), 1))):
        members = np.zeros(len(run), bool)
        members[part] = True
        if len(part):
            groups[f"{run.margin[part[0]]:.2f} to {run.margin[part[-1]]:.2f}"] = members
    return groups


def losses(run: Run) -> dict[str, int]:
    """Objects by where their name was lost: right, or the first stage that lost it.

    'not retrieved': not among the offered names (where no ranker was asked: not retrieval's first); 'ranked wrongly':
    offered, but not the ranker's first; 'fusion': the ranker's first, but another name came out.
    """
    asked = run.offered > 0
    offered = np.where(asked, run.offered, 1)
    right = run.fused.correct
    lost = run.retrieval.place >= offered
    wrongly = ~lost & asked & ~run.ranker.correct
    kinds = {
        "right": right,
        "not retrieved": ~right & lost,
        "ranked wrongly": ~right & wrongly,
        "fusion": ~right & ~lost & ~wrongly,
    }
    return {name: int((members & run.has_truth).sum()) for name, members in kinds.items()}


@dataclass(frozen=True)
class OrderEffect:
    """What the order in which a prompt shows the candidates does to a ranker that was asked in S orders."""

    count: int  # regions with an annotated object that were asked in all orders
    agree: float  # share in which every order prefers the same name
    right_agreed: float  # share of these that is right; NaN of none
    right_disputed: float  # of the others, by the mean over the orders; NaN of none
    right: tuple[float, ...]  # S shares that are right by each order alone, retrieval's own first
    first: tuple[float, ...]  # S shares that keep retrieval's first name
    together: float  # share that is right by the mean over the orders


def order_effect(run: Run) -> OrderEffect | None:
    """The effect, over regions with an annotated object; `None` where no region was asked in several orders."""
    rows = run.has_truth & (run.preferred >= 0).all(axis=1) if run.preferred.shape[1] > 1 else np.zeros(len(run), bool)
    if not rows.any():
        return None
    preferred, correct = run.preferred[rows], run.ranker.correct[rows]
    agree = (preferred == preferred[:, :1]).all(axis=1)
    return OrderEffect(
        int(rows.sum()),
        float(agree.mean()),
        float(correct[agree].mean()) if agree.any() else float("nan"),
        float(correct[~agree].mean()) if (~agree).any() else float("nan"),
        tuple((preferred == run.retrieval.place[rows, None]).mean(axis=0).tolist()),
        tuple((preferred == 0).mean(axis=0).tolist()),
        float(correct.mean()),
    )
