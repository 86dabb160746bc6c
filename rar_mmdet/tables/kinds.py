"""The kinds of tables: how the definition of one becomes rows, jobs and cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rar_mmdet.classification.experiment import WHOLE_TRAIN
from rar_mmdet.classification.results import RANKED
from rar_mmdet.tables.definitions import Definition, RowSpec
from rar_mmdet.tables.jobs import GivenJob, TestJob
from rar_mmdet.tables.photo_jobs import ClassifyJob, CropsJob, FinetuneJob, NamesJob, TaughtJob
from rar_mmdet.tables.rows import Cells, Options, Part, Plan, Row

__all__ = ["KINDS", "box_cells", "plan"]

AVERAGE, THE_TEN, NOISE = "average", "the ten", "raf_db"
METRICS = ("cACC", "sACC")
DEMO, TEN_SETS = "demo, rank-1", "ten sets"  # of the table of fine-tuning


def plan(definition: Definition, options: Options) -> Plan:
    """The rows of a table."""
    return KINDS[definition.kind](definition, options)


def box_cells(columns: Mapping[str, str | Sequence[str]], summary: Mapping[str, Any]) -> Cells:
    """Metrics of a test by column, in percent; of several keys of a column the first that is there."""
    # `rar-mmdet score` writes the same numbers without the evaluator's name before them.
    metrics = {key.rpartition("/")[2]: value for key, value in summary["metrics"].items()}
    cells = {}
    for column, keys in columns.items():
        names = [key.rpartition("/")[2] for key in ([keys] if isinstance(keys, str) else keys)]
        found = [metrics[name] for name in names if name in metrics]
        if found:
            cells[column] = 100 * found[0]
    return cells


def plan_boxes(definition: Definition, options: Options) -> Plan:
    """Tests of configs, and the user's own numbers; each row has a job of its own."""
    columns = definition.settings["columns"]
    rows = []
    for row in definition.rows:
        config = options.configs / row.settings["config"]
        folder = options.work_dirs / config.stem
        job = TestJob(config, folder, row.needs_gpu, options.num_images, options.gpus)
        rows.append(Row(row.name, (Part(job, partial(box_cells, columns)),)))
    rows += [Row(name, (Part(GivenJob(name, path), partial(box_cells, columns)),)) for name, path in options.given]
    return Plan(tuple(columns), tuple(rows))


def plan_few_shot(definition: Definition, options: Options) -> Plan:
    """A row in each section of shots, a column a set; a set has one job for all rows without a ranker, one for those
    with it."""
    sets = definition.settings["sets"]
    rows = []
    for shots in options.shots:
        for row in definition.rows:
            parts = [
                Part(
                    _classify(definition, options, row, one, shots), partial(_accuracy, one, row.settings["row"], shots)
                )
                for one in sets
            ]
            rows.append(Row(row.name, parts, _section(shots), partial(_with_averages, sets)))
    return Plan((*sets, AVERAGE, THE_TEN), tuple(rows))


def _classify(definition: Definition, options: Options, row: RowSpec, of_set: str, shots: str) -> ClassifyJob:
    is_ranked, is_train = RANKED in row.settings["row"], shots == WHOLE_TRAIN
    together = [other for other in definition.rows if (RANKED in other.settings["row"]) == is_ranked]
    return ClassifyJob(
        options.configs / "classification" / f"{of_set}.py",
        options.work_dirs / "classify" / f"{of_set}{'' if is_ranked else '-retrieval'}{'-train' if is_train else ''}",
        tuple(other.settings["row"] for other in together),
        (shots,) if is_train else tuple(one for one in options.shots if one != WHOLE_TRAIN),
        options.seeds,
        options.limit,
        row.needs_gpu,
    )


def _section(shots: str) -> str:
    return "whole train part" if shots == WHOLE_TRAIN else f"{shots} shot{'' if shots == '1' else 's'}"


def _accuracy(of_set: str, row: str, shots: str, summary: Mapping[str, Any]) -> Cells:
    return {of_set: 100 * summary["rows"][row][shots]}


def _with_averages(sets: Sequence[str], cells: Cells) -> Cells:
    """Means over all sets, and over those but RAF-DB, where each has a value."""
    ten = [one for one in sets if one != NOISE]
    means = {
        name: np.mean([cells[one] for one in of]) for name, of in ((AVERAGE, sets), (THE_TEN, ten)) if {*of} <= {*cells}
    }
    return {**cells, **{name: float(value) for name, value in means.items()}}


def plan_fine_grained(definition: Definition, options: Options) -> Plan:
    """A row a way to use found names, two columns a set."""
    sets: Mapping[str, str] = definition.settings["sets"]
    rows = []
    for row in definition.rows:
        finder, way = row.settings["finder"], row.settings["way"]
        key = way if row.settings.get("bare") else f"{finder}, {way}"
        parts = [
            Part(_names(definition, options, row, one, kind), partial(_name_scores, one, key))
            for one, kind in sets.items()
        ]
        rows.append(Row(row.name, parts, finish=partial(_with_name_averages, tuple(sets))))
    columns = [f"{one} {metric}" for one in (*sets, AVERAGE) for metric in METRICS]
    return Plan(tuple(columns), tuple(rows))


def _names(definition: Definition, options: Options, row: RowSpec, of_set: str, kind: str) -> NamesJob:
    finder, is_ranked = row.settings["finder"], RANKED in row.settings["way"]
    together = [
        other.settings["way"]
        for other in definition.rows
        if other.settings["finder"] == finder
        and (RANKED in other.settings["way"]) == is_ranked
        and not other.settings.get("bare")
    ]
    guesses = None if options.guesses is None else options.guesses / f"{of_set}.json"
    return NamesJob(
        options.configs / "classification" / f"{of_set}.py",
        options.work_dirs / "names" / of_set,
        options.work_dirs / "names-run" / f"{of_set}-{finder}{'-ranked' if is_ranked else ''}",
        finder,
        kind,
        tuple(together),
        options.seeds,
        {"wordnet": options.wordnet, "guessed": guesses}.get(finder),
        options.limit,
        row.needs_gpu,
    )


def _name_scores(of_set: str, row: str, rows: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Cells:
    known = {metric: [value for value in rows[row][metric] if value is not None] for metric in METRICS}
    return {f"{of_set} {metric}": 100 * float(np.mean(values)) for metric, values in known.items() if values}


def _with_name_averages(sets: Sequence[str], cells: Cells) -> Cells:
    means = {}
    for metric in METRICS:
        columns = [f"{one} {metric}" for one in sets]
        if {*columns} <= {*cells}:
            means[f"{AVERAGE} {metric}"] = float(np.mean([cells[column] for column in columns]))
    return {**cells, **means}


def plan_finetune(definition: Definition, options: Options) -> Plan:
    """A row a teacher, a column a set, and first the fine-tuning demo, all of one job."""
    sets: Sequence[str] = definition.settings["sets"]
    demo = options.configs.parent / "demo" / "run_finetune_demo.py"
    job = FinetuneJob(demo, options.work_dirs / "finetune-demo")
    rows = []
    for row in definition.rows:
        parts = [Part(job, partial(_rank_one, row.settings["key"]))]
        if "prompt" in row.settings:
            parts += _taught(definition, options, row, sets)
        rows.append(Row(row.name, parts, finish=partial(_with_mean, sets)))
    return Plan((DEMO, *sets, TEN_SETS), tuple(rows))


def _taught(definition: Definition, options: Options, row: RowSpec, sets: Sequence[str]) -> list[Part]:
    """The training of a row, if it has one, and each set with what was learned."""
    said = ["ranker.ask.type=Generate", f"ranker.ask.prompt={row.settings['prompt']}"]
    parts = []
    if "train" in row.settings:
        config = options.configs / "finetune" / f"{row.settings['train']}.py"
        data = options.configs / "classification" / f"{row.settings['data']}.py"
        folder = options.work_dirs / "finetune" / config.stem
        records = options.work_dirs / "finetune" / f"{data.stem}-data"
        parts.append(Part(TaughtJob(data, config, records, folder), lambda summary: {}))
        said.append(f"ranker.adapter={folder / 'adapter'}")
    shots, ranked = options.shots[0], definition.settings["row"]
    for one in sets:
        config = options.configs / "classification" / f"{one}.py"
        folder = options.work_dirs / "finetune" / f"{one}-{row.settings['key']}"
        seeds, limit = options.seeds, options.limit
        job = ClassifyJob(config, folder, (ranked,), (shots,), seeds, limit, needs_gpu=True, options=tuple(said))
        parts.append(Part(job, partial(_accuracy, one, ranked, shots)))
    return parts


def _rank_one(key: str, summary: Mapping[str, Any]) -> Cells:
    return {DEMO: 100 * summary[key]} if isinstance(summary.get(key), int | float) else {}


def _with_mean(sets: Sequence[str], cells: Cells) -> Cells:
    """The mean over the sets where each has a value."""
    return {**cells, TEN_SETS: float(np.mean([cells[one] for one in sets]))} if {*sets} <= {*cells} else cells


def plan_crops(definition: Definition, options: Options) -> Plan:
    """A row a scale and blur, all of one job."""
    config = options.configs / definition.settings["config"]
    job = CropsJob(config, options.work_dirs / "regions" / config.stem, options.num_images)
    columns = definition.settings["columns"]
    rows = [
        Row(row.name, (Part(job, partial(_crop, columns, row.settings["sigma"], row.settings["scale"])),))
        for row in definition.rows
    ]
    return Plan(tuple(columns), tuple(rows))


def _crop(columns: Mapping[str, str], sigma: float, scale: Any, result: Mapping[str, Any]) -> Cells:
    """The row of a scale: a number, three by area, or 'best': the best by area."""
    mine = [row for row in result["rows"] if row["sigma"] == sigma]
    if scale == "best":
        by_area = [row for row in mine if isinstance(row["scale"], list)]
        found = max(by_area, key=lambda row: row["AP"], default=None)
    else:
        found = next((row for row in mine if row["scale"] == scale), None)
    return {} if found is None else {column: found[key] for column, key in columns.items()}


KINDS: dict[str, Callable[[Definition, Options], Plan]] = {
    "boxes": plan_boxes,
    "few-shot": plan_few_shot,
    "fine-grained": plan_fine_grained,
    "finetune": plan_finetune,
    "crops": plan_crops,
}
