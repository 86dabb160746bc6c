"""The figures of a report: their data as CSV, drawn as PNG and SVG. Each compares the runs of a page."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.report.ranking import QUANTILES, change_by, margin_groups, order_effect, size_groups
from rar_mmdet.report.runs import Run
from rar_mmdet.report.sureness import risk_coverage, roc

__all__ = ["Figure", "Line", "figures_of", "label", "write_figure"]

PLACES = 20  # names of a shortlist that a record keeps
MARKED = 40  # points of a line that still get a dot
CURVE_POINTS = 200  # of a long curve, as many as a page can show
# TIDE's errors of boxes as `rar-mmdet score --errors` names them, and what a page calls them.
BOX_ERRORS = {
    "cls": "name",
    "loc": "place",
    "both": "both",
    "dupe": "duplicate",
    "bkg": "background",
    "miss": "missed",
    "fp": "all false",
    "fn": "all missed",
}


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
    lines: tuple[Line, ...] = ()
    diagonal: bool = False  # with the line of equal x and y
    whole: bool = False  # x are whole numbers
    ticks: tuple[str, ...] = ()  # texts instead of the numbers 1, 2, ... on the x axis
    bars: bool = False  # a bar for each point


Lines = Callable[[Sequence[Run]], Iterable[Line]]
_FIGURES: list[tuple[Figure, Lines]] = []  # without lines, and what makes them; in the order of a page


def _draws(name: str, title: str, caption: str, x_label: str, y_label: str, **how: Any) -> Callable[[Lines], Lines]:
    """The function below makes the lines of this figure; see the fields of `Figure`."""

    def add(lines_of: Lines) -> Lines:
        _FIGURES.append((Figure(name, title, caption, x_label, y_label, **how), lines_of))
        return lines_of

    return add


def figures_of(runs: Sequence[Run]) -> list[Figure]:
    """Every figure that the runs have data for."""
    found = ((figure, tuple(lines_of(runs))) for figure, lines_of in _FIGURES)
    return [replace(figure, lines=lines) for figure, lines in found if lines]


def label(run: Run, stage: str, runs: Sequence[Run]) -> str:
    """A stage, with its run where a page has several."""
    return stage if len(runs) == 1 else f"{run.name}: {stage}"


@_draws(
    "recall",
    "How often the true name is among the first k",
    "The ceiling of a ranker with k candidates is the curve of retrieval at k.",
    "k, names",
    "share of objects",
    whole=True,
)
def _recall(runs: Sequence[Run]) -> Iterator[Line]:
    ks = tuple(range(1, PLACES + 1))
    for run in runs:
        rows = run.has_truth
        if rows.any():
            for name, stage in run.stages.items():
                if name != "ranker":
                    shares = tuple(float((stage.place[rows] < k).mean()) for k in ks)
                    yield Line(label(run, name, runs), ks, shares)


@_draws(
    "ranker_k",
    "How many names the ranker is asked about",
    "Runs that differ in the number of candidates alone (the paper's Figure 10).",
    "K, candidates",
    "share of objects; AP",
    whole=True,
)
def _ranker_by_k(runs: Sequence[Run]) -> Iterator[Line]:
    for group, members in _series(runs, ("num_candidates",), lambda run: int(run.offered.max(initial=0)) or None):
        ks = tuple(k for k, _ in members)
        for name in ("ranker", "fused"):
            yield Line(f"{group}{name}", ks, tuple(_right(run, name) for _, run in members))
        yield from _average_precision(group, members)


@_draws(
    "crop_scale",
    "How much larger than the object its crop is",
    "Runs that differ in a fixed crop scale alone: first names by retrieval, by the size of the object (the "
    "paper's Figure 11).",
    "crop scale",
    "share of objects; AP",
)
def _crop_scale(runs: Sequence[Run]) -> Iterator[Line]:
    def factor(run: Run) -> float | None:
        scale = run.recognizer.get("cropper", {}).get("scale") or {}
        return float(scale.get("factor", 1.0)) if str(scale.get("type", "")).endswith("FixedScale") else None

    for group, members in _series(runs, ("cropper", "scale"), factor):
        factors = tuple(x for x, _ in members)
        for size in ("small", "medium", "large"):
            shares = [change_by(run, {size: size_groups(run)[size]}) for _, run in members]
            if all(shares):
                yield Line(f"{group}{size}", factors, tuple(of_run[0].before for of_run in shares))
        yield Line(f"{group}all", factors, tuple(_right(run, "retrieval") for _, run in members))
        yield from _average_precision(group, members)


def _series(
    runs: Sequence[Run], free: tuple[str, ...], value: Callable[[Run], float | None]
) -> list[tuple[str, list[tuple[float, Run]]]]:
    """Runs that differ in one setting alone, by its value: (text before the labels of its lines, (value, run)...).

    Args:
        runs: those of a page.
        free: the setting that may differ, and where it stands.
        value: its value in a run; `None` where the run has none.
    """
    groups: dict[str, dict[float, Run]] = {}
    for run in runs:
        settings, x = run.recognizer, value(run)
        if settings and x is not None and run.has_truth.any():
            # Where answers are kept, each run its own file by default, changes nothing.
            same = json.dumps(_without(_without(settings, *free), "ranker", "cache"), sort_keys=True)
            groups.setdefault(same, {}).setdefault(x, run)
    long = [sorted(members.items()) for members in groups.values() if len(members) > 1]
    return [("" if len(long) == 1 else f"{members[0][1].name} ...: ", members) for members in long]


def _without(settings: dict[str, Any], key: str, *deeper: str) -> dict[str, Any]:
    """The settings without the one at `key`, or at what lies deeper in it."""
    if not deeper:
        return {name: value for name, value in settings.items() if name != key}
    return settings | {key: _without(settings.get(key) or {}, *deeper)}


def _right(run: Run, stage: str) -> float:
    return float(run.stages.get(stage, run.retrieval).correct[run.has_truth].mean())


def _average_precision(group: str, members: Sequence[tuple[float, Run]]) -> list[Line]:
    """AP over the values, where every run has one of the same name."""
    for key in members[0][1].summary.get("metrics", {}):
        found = [run.summary.get("metrics", {}).get(key) for _, run in members]
        if key.endswith(("bbox_AP", "bbox_mAP")) and all(isinstance(number, float) for number in found):
            return [Line(f"{group}AP", tuple(x for x, _ in members), tuple(found))]
    return []


@_draws(
    "reliability",
    "Does confidence keep its promise?",
    "Bins of equal mass. Above the dotted line a stage is right more often than it says.",
    "confidence of the first name",
    "share that is right",
    diagonal=True,
)
def _reliability(runs: Sequence[Run]) -> Iterator[Line]:
    for run in runs:
        for judged in run.judged:
            bins = judged.reliability
            yield Line(label(run, judged.stage, runs), tuple(bins.confidence), tuple(bins.accuracy))


@_draws(
    "risk_coverage",
    "Errors among the surest answers",
    "Keep the surest share (x) of the answers: so many of them are wrong (y).",
    "share of objects that are kept",
    "share of them that is wrong",
)
def _risk_coverage(runs: Sequence[Run]) -> Iterator[Line]:
    for run in runs:
        for judged in run.judged:
            curve = risk_coverage(judged.confidence, judged.correct)
            kept = _spaced(len(curve.risk))
            yield Line(label(run, judged.stage, runs), tuple(curve.coverage[kept]), tuple(curve.risk[kept]))


def _spaced(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, CURVE_POINTS).round().astype(int))


@_draws(
    "none_of_these",
    "None of these: objects and regions without one",
    "Each point is a threshold on the score: how many regions without an object keep a name (x), and how many "
    "objects keep theirs (y).",
    "share of regions without an object that is named",
    "share of objects that is named",
    diagonal=True,
)
def _nothing_there(runs: Sequence[Run]) -> Iterator[Line]:
    for run in runs:
        for name, scores, there in run.presence_scores():
            empty, objects = roc(scores, there)
            kept = _spaced(len(empty))
            yield Line(label(run, name, runs), tuple(empty[kept]), tuple(objects[kept]))


@_draws(
    "gain_by_margin",
    "Where ranking helps",
    "Fifths of the objects, from those that retrieval was least sure of to those it was surest of.",
    "fifth by retrieval's margin",
    "share made right, made wrong",
    ticks=("least sure", *(str(n) for n in range(2, QUANTILES)), "surest"),
)
def _gain_by_margin(runs: Sequence[Run]) -> Iterator[Line]:
    for run in runs:
        if run.is_ranked and run.has_truth.any():
            changes = change_by(run, margin_groups(run))
            x = tuple(range(1, len(changes) + 1))
            yield Line(label(run, "improved", runs), x, tuple(c.improved for c in changes))
            yield Line(label(run, "harmed", runs), x, tuple(-c.harmed for c in changes))


@_draws(
    "order_effect",
    "What the order of the prompt does",
    "Each order of the candidates by itself; the first is retrieval's. Level lines: no effect.",
    "order of the prompt",
    "share of objects",
    whole=True,
)
def _order_effect(runs: Sequence[Run]) -> Iterator[Line]:
    for run in runs:
        effect = order_effect(run)
        if effect is not None:
            x = tuple(range(1, len(effect.right) + 1))
            yield Line(label(run, "right", runs), x, effect.right)
            yield Line(label(run, "keeps retrieval's first name", runs), x, effect.first)


@_draws(
    "box_errors",
    "What went wrong with boxes",
    "What AP at IoU 0.5 would gain if all errors of one kind were mended (TIDE).",
    "error",
    "gain in AP, of 1",
    ticks=tuple(BOX_ERRORS.values()),
    bars=True,
)
def _box_errors(runs: Sequence[Run]) -> Iterator[Line]:
    for run in runs:
        metrics = run.summary.get("metrics", {})
        costs = [metrics.get(f"bbox_dAP_{kind}") for kind in BOX_ERRORS]
        if all(isinstance(cost, float | int) for cost in costs):
            yield Line(run.name, tuple(range(1, len(costs) + 1)), tuple(map(float, costs)))


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
        for number, line in enumerate(figure.lines):
            if figure.bars:
                width = 0.8 / len(figure.lines)
                left = (number - (len(figure.lines) - 1) / 2) * width
                panel.bar([x + left for x in line.x], line.y, width, label=line.label)
                continue
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
