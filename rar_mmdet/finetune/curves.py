"""The picture of a training: loss and early looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_curves"]


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss of the answers' tokens on the left, rank-1 of the early looks on the right; a PNG.

    Args:
        history: entries with `step` and `loss` or `rank_one`.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for panel, key, label, scale in zip(
        panels, ("loss", "rank_one"), ("loss of the answer, nats a token", "rank-1, held-out questions (%)"), (1, 100),
        strict=True,
    ):  # fmt: skip
        points = [(entry["step"], scale * entry[key]) for entry in history if key in entry]
        panel.plot([step for step, _ in points], [value for _, value in points], "o-", markersize=3)
        panel.set(xlabel="step", ylabel=label)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
