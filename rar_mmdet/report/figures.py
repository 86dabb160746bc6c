"""The figures of a report: their data as CSV, drawn as PNG and SVG. Each compares the runs of a page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.report.ranking import QUANTILES, change_by, margin_groups
from rar_mmdet.report.runs import Run
from rar_mmdet.report.sureness import reliability, risk_coverage

__all__ = ["Figure", "Line", "figures_of", "label", "write_figure"]

PLACES = 20  # names of a shortlist that a record keeps
MARKED = 40  # points of a line that still get a dot
CURVE_POINTS = 200  # of a risk-coverage curve, as many as a page can show


@dataclass(frozen=True)
class Line:
    """Points of one line or group of bars."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Figure:
    """What is drawn; equal data give equal figures."""

    name: str  # of its files
    title: str
    caption: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    diagonal: bool = False  # with the line of equal x and y
    whole: bool = False  # x are whole numbers
    ticks: tuple[str, ...] = ()  # texts instead of numbers on the x axis


def figures_of(runs: Sequence[Run]) -> list[Figure]:
    """Every figure that the runs have data for."""
    return [figure for make in (_recall, _reliability, _risk_coverage, _gain_by_margin) if (figure := make(runs)).lines]


def label(run: Run, stage: str, runs: Sequence[Run]) -> str:
    """A stage, with its run where a page has several."""
    return stage if len(runs) == 1 else f"{run.name}: {stage}"


def _recall(runs: Sequence[Run]) -> Figure:
    lines = []
    ks = tuple(range(1, PLACES + 1))
    for run in runs:
        rows = run.has_truth
        if rows.any():
            for name, stage in run.stages.items():
                if name != "ranker":
                    shares = tuple(float((stage.place[rows] < k).mean()) for k in ks)
                    lines.append(Line(label(run, name, runs), ks, shares))
    return Figure(
        "recall",
        "How often the true name is among the first k",
        "The ceiling of a ranker with k candidates is the curve of retrieval at k.",
        "k, names",
        "share of objects",
        tuple(lines),
        whole=True,
    )


def _judged(run: Run) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Stage, confidence and correctness of the objects it speaks of, where its confidence is one."""
    found = []
    for name, stage in run.stages.items():
        rows = run.has_truth & stage.spoke
        if rows.any() and (stage.confidence[rows] <= 1 + 1e-6).all():
            found.append((name, np.clip(stage.confidence[rows], 0, 1), stage.correct[rows]))
    return found


def _reliability(runs: Sequence[Run]) -> Figure:
    lines = []
    for run in runs:
        for name, confidence, correct in _judged(run):
            bins = reliability(confidence, correct)
            lines.append(Line(label(run, name, runs), tuple(bins.confidence), tuple(bins.accuracy)))
    return Figure(
        "reliability",
        "Does confidence keep its promise?",
        "Bins of equal mass. Above the dotted line a stage is right more often than it says.",
        "confidence of the first name",
        "share that is right",
        tuple(lines),
        diagonal=True,
    )


def _risk_coverage(runs: Sequence[Run]) -> Figure:
    lines = []
    for run in runs:
        for name, confidence, correct in _judged(run):
            curve = risk_coverage(confidence, correct)
            kept = np.unique(np.linspace(0, len(curve.risk) - 1, CURVE_POINTS).round().astype(int))
            lines.append(Line(label(run, name, runs), tuple(curve.coverage[kept]), tuple(curve.risk[kept])))
    return Figure(
        "risk_coverage",
        "Errors among the surest answers",
        "Keep the surest share (x) of the answers: so many of them are wrong (y).",
        "share of objects that are kept",
        "share of them that is wrong",
        tuple(lines),
    )


def _gain_by_margin(runs: Sequence[Run]) -> Figure:
    lines = []
    for run in runs:
        if run.is_ranked:
            changes = change_by(run, margin_groups(run))
            x = tuple(range(1, len(changes) + 1))
            lines.append(Line(label(run, "improved", runs), x, tuple(c.improved for c in changes)))
            lines.append(Line(label(run, "harmed", runs), x, tuple(-c.harmed for c in changes)))
    return Figure(
        "gain_by_margin",
        "Where ranking helps",
        "Fifths of the objects, from those that retrieval was least sure of to those it was surest of.",
        "fifth by retrieval's margin",
        "share made right, made wrong",
        tuple(lines),
        ticks=("least sure", *(str(n) for n in range(2, QUANTILES)), "surest"),
    )


def write_figure(figure: Figure, folder: Path) -> Path:
    """Write `NAME.csv`, `.png` and `.svg`; the path of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{figure.name}.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["line", figure.x_label, figure.y_label])
        for line in figure.lines:
            table.writerows((line.label, x, y) for x, y in zip(line.x, line.y, strict=True))
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": figure.name}  # text stays text; the same bytes each time
    with plt.rc_context(settings):
        canvas, panel = plt.subplots(figsize=(6, 4), layout="constrained")
        for line in figure.lines:
            panel.plot(line.x, line.y, "o-" if len(line.x) <= MARKED else "-", markersize=3, label=line.label)
        if figure.diagonal:
            panel.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
        if figure.whole:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if figure.ticks:
            panel.set_xticks(range(1, len(figure.ticks) + 1), figure.ticks)
        panel.set(xlabel=figure.x_label, ylabel=figure.y_label)
        panel.grid(alpha=0.3)
        for text in panel.legend(fontsize="small").get_texts():
            text.set_parse_math(False)  # a run may be called $5$
        for suffix in (".png", ".svg"):
            metadata = {"Date": None} if suffix == ".svg" else None
            canvas.savefig(folder / f"{figure.name}{suffix}", dpi=120, metadata=metadata)
        plt.close(canvas)
    return folder / f"{figure.name}.svg"
