"""Where ranking helps and where it harms, what was lost at which stage, and which names are taken for which."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.report.runs import Run

__all__ = ["Change", "change_by", "confusions", "losses", "margin_groups", "size_groups"]

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


def confusions(run: Run, most: int = 200) -> list[dict[str, Any]]:
    """The pairs (annotated name, given name) that occur most often: labels, names, count and an example's row."""
    rows = np.flatnonzero(run.has_truth & ~run.fused.correct)
    pairs = list(zip(run.truth[rows].tolist(), run.named[rows].tolist(), strict=True))
    first: dict[tuple[int, int], int] = {}
    for pair, row in zip(pairs, rows.tolist(), strict=True):
        first.setdefault(pair, row)
    ranked = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))[:most]
    return [
        {
            "truth": truth,
            "named": named,
            "truth_name": run.names.get(truth, str(truth)),
            "named_name": run.names.get(named, str(named)),
            "count": count,
            "row": first[truth, named],
        }
        for (truth, named), count in ranked
    ]
