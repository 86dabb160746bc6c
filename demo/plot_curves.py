"""Draw the measured curves of both demo models next to their weights: python demo/plot_curves.py"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent


def draw(panels: list[tuple[str, list[dict[str, float]], dict[str, str]]], path: Path) -> None:
    """One panel per (title, curve, {key in the curve: label}), accuracies against training steps."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (title, curve, lines) in zip(axes[0], panels, strict=True):
        for key, label in lines.items():
            axis.plot([point["step"] for point in curve], [point[key] for point in curve], label=label)
        axis.set(title=title, xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=HERE / "weights", help="folder with clip/ and ranker/")
    weights = parser.parse_args().weights
    clip = json.loads((weights / "clip" / "measured.json").read_text())
    lines = {"top1": "top-1 of 600", "top5": "top-5 of 600"}
    draw([("retriever, 600 fresh crops", clip["curve"], lines)], weights / "clip" / "curves.png")
    ranker = json.loads((weights / "ranker" / "measured.json").read_text())
    tower = {"joint": "all three attributes", "colour": "colour", "pattern": "pattern", "shape": "shape"}
    language = {"ranked": "top-1 after ranking", "retriever": "top-1 of the retriever", "recall@5": "recall@5"}
    answers = [
        {"step": point["step"], **point["right first answers"]}
        for point in ranker["ranker"][:-1]
        if "right first answers" in point
    ]
    panels = [
        ("tower, 1,000 fresh crops", ranker["tower"], tower),
        ("ranker, 600 fresh crops", ranker["ranker"][:-1], language),
        ("right first answers", answers, {"choose": "a name", "letter": "a letter", "yesno": "yes or no"}),
    ]
    draw(panels, weights / "ranker" / "curves.png")


if __name__ == "__main__":
    main()
