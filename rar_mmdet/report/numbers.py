"""The tables of a page: every number of one or several runs, as texts under a heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from rar_mmdet.report.confusions import NameTree, roll_up
from rar_mmdet.report.figures import label
from rar_mmdet.report.ranking import Change, change_by, losses, margin_groups, order_effect, size_groups
from rar_mmdet.report.runs import Run
from rar_mmdet.report.sureness import auroc, brier, calibration_error, fit_temperature, risk_coverage, roc, tempered
from rar_mmdet.scoring.accuracy import accuracy, compare_accuracy

__all__ = ["Table", "percent", "tables_of"]

PRECISION = 0.95
CHANGED = ("right before", "right after", "improved", "harmed", "unchanged")
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
    wide: bool = False  # needs the width of the page


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


def percent(value: float) -> str:
    """A share of 1 in percent, "-" of nothing."""
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
                interval = f"{percent(found.low)} to {percent(found.high)}"
                rows.append((label(run, name, runs), percent(found.value), interval, str(found.count)))
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
        cells = [f"{by[kind]} ({percent(by[kind] / sum(by.values()))} %)" for by in found.values()]
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
                    f"{percent(bins.error)} ({percent(bins.low)} to {percent(bins.high)})",
                    _decimal(brier(confidence, correct)),
                    _decimal(auroc(confidence, correct)),
                    _decimal(curve.area),
                    percent(curve.coverage_at(PRECISION)),
                    f"{temperature:.2f}",
                    percent(calibration_error(tempered(confidence, temperature), correct)),
                )
            )
    head = ("", "ECE, %", "Brier", "AUROC", "AURC", f"coverage at {PRECISION:.0%}", "T", "ECE with T, %")
    note = (
        "ECE in bins of equal mass with its 95 % interval. AUROC: of right against wrong. Coverage: share of the "
        "surest answers of which 95 % are right. T: the temperature that logit(confidence) must be divided by to fit; "
        "above 1 the stage is too sure. Beside it what it would mend: it was fitted on the same objects."
    )
    return Table("How sure, and rightly so?", head, tuple(rows), note, wide=True)


def _nothing_there(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        for name, scores, there in run.presence_scores():
            empty, objects = roc(scores, there)
            at = int(np.searchsorted(objects, PRECISION))
            medians = [f"{np.median(scores[kind]):.2f}" for kind in (there, ~there)]
            numbers = (_decimal(auroc(scores, there)), percent(empty[at]), *medians, str(int((~there).sum())))
            rows.append((label(run, name, runs), *numbers))
    head = ("", "AUROC", f"named at {PRECISION:.0%}, %", "median, object", "median, none", "regions without an object")
    note = (
        "Does a score tell regions with an annotated object from regions without one? Named: share of the latter that "
        "still get a name when the threshold keeps 95 % of the objects."
    )
    return Table("None of these", head, tuple(rows), note, wide=True)


def _order(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        effect = order_effect(run)
        if effect is not None:
            cells = (effect.agree, effect.right_agreed, effect.right_disputed, min(effect.right), max(effect.right))
            shares = (*map(percent, cells), percent(effect.together), percent(effect.first[0]))
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
    return Table("What the order of the prompt does", head, tuple(rows), note, wide=True)


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
        note = "Mistakes by the nearest node of the tree above both names."
        tables.append(Table(title, head, meetings, note, wide=True))
    return tables


def _share(part: int, whole: int) -> str:
    return percent(part / whole) + " %" if whole else "-"


def _changes_by_frequency(run: Run, of_run: str) -> Table:
    """From the metrics, as records do not know how frequent a category is."""
    metrics = run.summary.get("metrics", {})
    parts = ("retrieval_top1", "top1", "improved", "harmed", "asked")
    rows = []
    for group in ("r", "c", "f"):
        values = [metrics.get(f"recognition/{part}_{group}") for part in parts]
        if all(isinstance(value, float) and value >= 0 for value in values):
            rows.append((GROUPS[group], *_changed(*values[:4]), percent(values[4])))
    head = ("frequency", *CHANGED, "asked")
    note = "In percent of the objects of each line; after: by the ranker's own order (RecognitionMetric)."
    return Table(f"What ranking changed, by frequency{of_run}", head, tuple(rows), note)


def _changes(title: str, by: str, changes: Sequence[Change]) -> Table:
    rows = [(c.group, str(c.count), *_changed(c.before, c.after, c.improved, c.harmed)) for c in changes]
    note = "In percent of the objects of each line; unchanged: right or wrong, as before."
    return Table(title, (by, "objects", *CHANGED), tuple(rows), note)


def _changed(before: float, after: float, improved: float, harmed: float) -> tuple[str, ...]:
    """Cells below `CHANGED`."""
    return tuple(map(percent, (before, after, improved, harmed, max(0.0, 1 - improved - harmed))))
