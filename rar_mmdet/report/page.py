"""One page of one or several runs: static and self-contained; only sorting and filters need JavaScript."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.files.pages import render_page
from rar_mmdet.report.confusions import NameTree, classes_of, confusions, roll_up
from rar_mmdet.report.figures import Figure, label
from rar_mmdet.report.panels import Pictures, choose, panel_of
from rar_mmdet.report.ranking import Change, change_by, losses, margin_groups, order_effect, size_groups
from rar_mmdet.report.runs import Run
from rar_mmdet.report.sureness import auroc, brier, calibration_error, fit_temperature, risk_coverage, roc, tempered
from rar_mmdet.scoring.accuracy import accuracy, compare_accuracy

__all__ = ["Table", "render", "tables_of"]

TEMPLATE = Path(__file__).with_name("page.html.jinja")
PICTURED_PAIRS = 200  # of names taken for others
PRECISION = 0.95
SHOWN_CLASSES = 2000  # most mistakes first; more are too many for a browser, and in the CSV
# Endings of metrics of a group of objects, as `RecognitionMetric` writes them.
GROUPS = {"r": "rare", "c": "common", "f": "frequent", "s": "small", "m": "medium", "l": "large"}


@dataclass(frozen=True)
class Table:
    """Rows of texts under a heading."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False  # shown when asked for


def tables_of(runs: Sequence[Run], tree: NameTree | None = None) -> list[Table]:
    """Every table that the runs have data for; with a tree, also of where names are taken for others along it."""
    tables = [_accuracy(runs), _pairs(runs), _losses(runs), _sureness(runs), _nothing_there(runs), _order(runs)]
    for run in runs:
        if run.is_ranked:
            of_run = f" ({run.name})" if len(runs) > 1 else ""
            tables.append(_changes(f"What ranking changed, by size{of_run}", "size", change_by(run, size_groups(run))))
            by_margin = change_by(run, margin_groups(run))
            tables.append(_changes(f"What ranking changed, by retrieval's margin{of_run}", "margin", by_margin))
            tables.append(_changes_by_frequency(run, of_run))
    if tree is not None:
        tables += _along_the_tree(runs, tree)
    tables += [_metrics(runs), *_grouped(runs)]
    return [table for table in tables if table.rows]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def _decimal(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _metrics(runs: Sequence[Run]) -> Table:
    """What the evaluators wrote into summary.json, without the groups that `_grouped` has."""
    found = [run.summary.get("metrics", {}) for run in runs]
    keys = [key for key in dict.fromkeys(chain.from_iterable(found)) if key[:-2] not in found[0] or key[-2] != "_"]
    rows = tuple((key, *(_number(metrics.get(key)) for metrics in found)) for key in keys)
    note = "As the evaluators wrote them into summary.json; -1: nothing to find."
    return Table("Metrics", ("", *(run.name for run in runs)), rows, note)


def _grouped(runs: Sequence[Run]) -> list[Table]:
    """Metrics that have a value for each frequency or size: a row a metric, a column a group."""
    tables = []
    for run in runs:
        metrics = run.summary.get("metrics", {})
        base = [key for key in metrics if any(f"{key}_{group}" in metrics for group in GROUPS)]
        rows = tuple((key, *(_number(metrics.get(f"{key}_{group}")) for group in GROUPS)) for key in base)
        title = "By frequency and size" + (f" ({run.name})" if len(runs) > 1 else "")
        tables.append(Table(title, ("", *GROUPS.values()), rows, folded=True))
    return tables


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return str(int(value)) if value == int(value) and abs(value) > 1 else f"{value:.4f}"


def _accuracy(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        known = run.has_truth
        if known.any():
            for name, stage in run.stages.items():
                found = accuracy(stage.correct[known])
                interval = f"{_percent(found.low)} to {_percent(found.high)}"
                rows.append((label(run, name, runs), _percent(found.value), interval, str(found.count)))
    note = "Share of annotated objects whose first name is the true one, in percent."
    return Table("First name", ("", "right", "95 % interval", "objects"), tuple(rows), note)


def _pairs(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        known = run.has_truth
        if run.is_ranked and known.any():
            pair = compare_accuracy(run.fused.correct[known], run.retrieval.correct[known])
            rows.append((label(run, "ranking against retrieval", runs), *_pair_cells(pair)))
    first = runs[0]
    place = {key: row for row, key in enumerate(first.keys)}
    for other in runs[1:]:
        shared = [(place[key], row) for row, key in enumerate(other.keys) if key in place]
        mine, theirs = (np.array(rows_, np.int64) for rows_ in zip(*shared, strict=True)) if shared else (None, None)
        if mine is None or theirs is None:
            continue
        known = first.has_truth[mine] & (first.truth[mine] == other.truth[theirs])
        if known.any():
            pair = compare_accuracy(other.fused.correct[theirs][known], first.fused.correct[mine][known])
            rows.append((f"{other.name} against {first.name} ({int(known.sum())} shared objects)", *_pair_cells(pair)))
    head = ("", "points", "95 % interval", "gained", "lost", "McNemar p")
    return Table("Differences on the same objects", head, tuple(rows), "Paired bootstrap over objects.")


def _pair_cells(pair: Any) -> tuple[str, ...]:
    interval = f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}"
    return f"{100 * pair.difference:+.1f}", interval, str(pair.only_first), str(pair.only_other), f"{pair.p_value:.2g}"


def _losses(runs: Sequence[Run]) -> Table:
    found = {run.name: losses(run) for run in runs if run.has_truth.any()}
    kinds = ("right", "not retrieved", "ranked wrongly", "fusion")
    rows = []
    for kind in kinds:
        cells = [f"{by[kind]} ({_percent(by[kind] / sum(by.values()))} %)" for by in found.values()]
        rows.append((kind, *cells))
    note = (
        "Not retrieved: the true name was not among those offered to the ranker (without one: not first). Fusion: the "
        "ranker had it first, but another name came out."
    )
    return Table("Where names were lost", ("", *found), tuple(rows) if found else (), note)


def _sureness(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        for judged in run.judged:
            confidence, correct, bins = judged.confidence, judged.correct, judged.reliability
            curve, temperature = risk_coverage(confidence, correct), fit_temperature(confidence, correct)
            rows.append(
                (
                    label(run, judged.stage, runs),
                    f"{_percent(bins.error)} ({_percent(bins.low)} to {_percent(bins.high)})",
                    _decimal(brier(confidence, correct)),
                    _decimal(auroc(confidence, correct)),
                    _decimal(curve.area),
                    _percent(curve.coverage_at(PRECISION)),
                    f"{temperature:.2f}",
                    _percent(calibration_error(tempered(confidence, temperature), correct)),
                )
            )
    head = ("", "ECE, %", "Brier", "AUROC", "AURC", f"coverage at {PRECISION:.0%}", "T", "ECE with T, %")
    note = (
        "ECE in bins of equal mass with its 95 % interval. AUROC: of right against wrong. Coverage: share of the "
        "surest answers of which 95 % are right. T: the temperature that logit(confidence) must be divided by to fit; "
        "above 1 the stage is too sure. Beside it what it would mend: it was fitted on the same objects."
    )
    return Table("How sure, and rightly so?", head, tuple(rows), note)


def _nothing_there(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        for name, scores, there in run.presence_scores():
            empty, objects = roc(scores, there)
            at = int(np.searchsorted(objects, PRECISION))
            medians = [f"{np.median(scores[kind]):.2f}" for kind in (there, ~there)]
            numbers = (_decimal(auroc(scores, there)), _percent(empty[at]), *medians, str(int((~there).sum())))
            rows.append((label(run, name, runs), *numbers))
    head = ("", "AUROC", f"named at {PRECISION:.0%}, %", "median, object", "median, none", "regions without an object")
    note = (
        "Does a score tell regions with an annotated object from regions without one? Named: share of the latter that "
        "still get a name when the threshold keeps 95 % of the objects."
    )
    return Table("None of these", head, tuple(rows), note)


def _order(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        effect = order_effect(run)
        if effect is not None:
            cells = (effect.agree, effect.right_agreed, effect.right_disputed, min(effect.right), max(effect.right))
            shares = (*map(_percent, cells), _percent(effect.together), _percent(effect.first[0]))
            rows.append((label(run, f"{len(effect.right)} orders", runs), *shares, str(effect.count)))
    head = (
        "",
        "all agree",
        "right if so",
        "right if not",
        "worst order",
        "best order",
        "mean of all",
        "first keeps retrieval's",
        "objects",
    )
    note = (
        "Percent of the objects the ranker was asked about in several orders of its candidates. Right if so, if not: "
        "by the mean of all orders. The first order is retrieval's own: how often its first name stays first there."
    )
    return Table("What the order of the prompt does", head, tuple(rows), note)


def _along_the_tree(runs: Sequence[Run], tree: NameTree) -> list[Table]:
    found = [(run, roll_up(run, tree)) for run in runs if run.has_truth.any()]
    if not found:
        return []
    rows = [
        (
            relation,
            *(
                f"{r.relations[relation]} ({_share(r.relations[relation], sum(r.relations.values()))})"
                for _, r in found
            ),
        )
        for relation in found[0][1].relations
    ]
    note = "How the given name stands to the annotated one in the tree."
    tables = [Table("Wrong names along the tree", ("", *(run.name for run, _ in found)), tuple(rows), note)]
    for run, rolled in found:
        meetings = tuple(
            (
                m.name,
                str(m.mistakes),
                str(m.objects),
                _share(m.mistakes, m.objects),
                f"{' as '.join(m.pair)} ({m.times})",
            )
            for m in rolled.meetings
        )
        title = "Where they meet" + (f" ({run.name})" if len(runs) > 1 else "")
        head = ("nearest node above both", "mistakes", "objects below", "share", "most frequent")
        tables.append(Table(title, head, meetings, "Mistakes by the nearest node of the tree above both names."))
    return tables


def _share(part: int, whole: int) -> str:
    return _percent(part / whole) + " %" if whole else "-"


def _changes_by_frequency(run: Run, of_run: str) -> Table:
    """From the metrics, as records do not know how frequent a category is."""
    metrics = run.summary.get("metrics", {})
    parts = ("retrieval_top1", "top1", "improved", "harmed", "asked")
    rows = []
    for group in ("r", "c", "f"):
        values = [metrics.get(f"recognition/{part}_{group}") for part in parts]
        if all(isinstance(value, float) and value >= 0 for value in values):
            rows.append((GROUPS[group], *(_percent(value) for value in values)))
    head = ("frequency", "right before", "right after", "improved", "harmed", "asked")
    note = "In percent of the objects of each line; after: by the ranker's own order (RecognitionMetric)."
    return Table(f"What ranking changed, by frequency{of_run}", head, tuple(rows), note)


def _changes(title: str, by: str, changes: Sequence[Change]) -> Table:
    rows = [
        (c.group, str(c.count), _percent(c.before), _percent(c.after), _percent(c.improved), _percent(c.harmed))
        for c in changes
    ]
    head = (by, "objects", "right before", "right after", "improved", "harmed")
    return Table(title, head, tuple(rows), "In percent of the objects of each line.")


def render(
    runs: Sequence[Run],
    figures: Sequence[tuple[Figure, Path]],
    *,
    title: str,
    panels: int,
    seed: int,
    beside: Path,
    tree: NameTree | None = None,
) -> str:
    """The page as text.

    Args:
        runs: one or more.
        figures: each with the SVG it was written to.
        title: of the page.
        panels: regions of each kind to show.
        seed: of those at random.
        beside: folder of the page, which the paths it names are relative to.
        tree: of the names.
    """
    return render_page(
        TEMPLATE,
        title=title,
        runs=[_run_of(run, panels, seed) for run in runs],
        tables=tables_of(runs, tree),
        figures=[
            {
                "title": figure.title,
                "caption": figure.caption,
                "source": "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii"),
                "data": path.with_suffix(".csv").relative_to(beside).as_posix(),
            }
            for figure, path in figures
        ],
    )


def _run_of(run: Run, panels: int, seed: int) -> dict[str, Any]:
    pictures = Pictures()
    chosen = choose(run, panels, seed)
    pairs = confusions(run)
    wanted = [*chosen.values(), np.array([pair["row"] for pair in pairs[:PICTURED_PAIRS]], np.int64)]
    rows = np.unique(np.concatenate(wanted))
    classes = classes_of(run)
    shown = dict(zip(rows.tolist(), (panel_of(r, pictures) for r in run.records(rows)), strict=True))
    return {
        "name": run.name,
        "regions": len(run),
        "objects": int(run.has_truth.sum()),
        "missing": len(pictures.missing),
        "protocol": _protocol_lines(run.summary),
        "settings": json.dumps(run.summary["protocol"], indent=2) if "protocol" in run.summary else "",
        "panels": [{"title": t, "panels": [shown[row] for row in found.tolist()]} for t, found in chosen.items()],
        "classes": [
            {
                "name": row.name,
                "objects": row.objects,
                "before": _percent(row.before),
                "after": _percent(row.after),
                "taken_for": f"{row.taken_for} ({row.times})" if row.times else "",
            }
            for row in classes[:SHOWN_CLASSES]
        ],
        "all_classes": len(classes),
        "confusions": [pair | {"picture": shown[pair["row"]].picture} for pair in pairs],
    }


def _protocol_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know first."""
    protocol = summary.get("protocol", {})
    lines: list[tuple[str, Any]] = [
        (key, summary[key]) for key in ("config", "checkpoint", "num_images", "first_images_only") if key in summary
    ]
    for where, settings in protocol.get("recognizers", {}).items():
        for part in ("cropper", "encoder", "memory", "ranker", "fusion", "emission", "num_candidates"):
            if settings.get(part) is not None:
                lines.append((f"{where}.{part}", json.dumps(settings[part])))
    lines += [("evaluator", json.dumps(one)) for one in protocol.get("evaluators", [])]
    lines += [(f"SHA-256 of {file}", value) for file, value in protocol.get("annotations_sha256", {}).items()]
    model = summary.get("report", {}).get("ranker", {}).get("model")
    if isinstance(model, dict):
        lines.append(("ranker's model", json.dumps({key: model.get(key) for key in ("id", "weights", "dtype")})))
    if "versions" in protocol:
        lines.append(("versions", ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())))
    lines += [(key, protocol[key]) for key in ("device",) if key in protocol]
    if "seconds_per_image" in summary:
        lines.append(("seconds per image", f"{summary['seconds_per_image']:.3f}"))
    return [(key, str(value)) for key, value in lines if value is not None]
