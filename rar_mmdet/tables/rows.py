"""From the definition of a table to its rows: which jobs each needs, and which of their numbers stand where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rar_mmdet.tables.definitions import Definition
from rar_mmdet.tables.jobs import Job, Look, TestJob
from rar_mmdet.tables.protocol import protocol_lines
from rar_mmdet.tables.sheet import OURS, Line, Sheet

__all__ = ["Options", "Part", "Plan", "Row", "box_cells", "default_configs", "plan", "sheet_of"]

Cells = Mapping[str, float]


def default_configs() -> Path:
    """The configs of a checkout, or those that were installed with the package."""
    package = Path(__file__).parents[1]
    folder = next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


@dataclass(frozen=True)
class Options:
    """What the command line says of all tables."""

    configs: Path = field(default_factory=default_configs)
    work_dirs: Path = Path("work_dirs")
    num_images: int | None = None
    gpus: int = 1


@dataclass(frozen=True)
class Part:
    """Some cells of a row, read from one job."""

    job: Job
    read: Callable[[Mapping[str, Any]], Cells]  # of the job's result, in percent


@dataclass(frozen=True)
class Row:
    """A row of ours."""

    name: str
    parts: Sequence[Part]
    section: str = ""
    finish: Callable[[Cells], Cells] = lambda cells: cells  # from the cells of all parts to those shown, such as means


@dataclass(frozen=True)
class Plan:
    """A table before anything has run."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def jobs(self) -> list[Job]:
        """All of them, in the order of the rows."""
        return list({part.job.name: part.job for row in self.rows for part in row.parts}.values())


def box_cells(columns: Mapping[str, str | Sequence[str]], summary: Mapping[str, Any]) -> Cells:
    """Metrics of a test by column, in percent; of several keys of a column the first that is there."""
    metrics = summary["metrics"]
    cells = {}
    for column, keys in columns.items():
        found = [metrics[key] for key in ([keys] if isinstance(keys, str) else keys) if key in metrics]
        if found:
            cells[column] = 100 * found[0]
    return cells


def plan_boxes(definition: Definition, options: Options) -> Plan:
    """Tests of configs; each row has a job of its own."""
    columns = definition.settings["columns"]
    rows = []
    for row in definition.rows:
        config = options.configs / row.settings["config"]
        folder = options.work_dirs / config.stem
        job = TestJob(config, folder, row.needs_gpu, options.num_images, options.gpus)
        rows.append(Row(row.name, (Part(job, partial(box_cells, columns)),)))
    return Plan(tuple(columns), tuple(rows))


KINDS: dict[str, Callable[[Definition, Options], Plan]] = {"boxes": plan_boxes}


def plan(definition: Definition, options: Options) -> Plan:
    """The rows of a table."""
    return KINDS[definition.kind](definition, options)


def sheet_of(definition: Definition, planned: Plan, looks: Mapping[str, Look]) -> Sheet:
    """The table as far as its jobs have run: ours, what others printed in the same row below it, other rows last.

    Args:
        definition: of the table.
        planned: its rows.
        looks: how each job stands, by name.
    """
    lines: list[Line] = []
    not_here: dict[str, tuple[str, ...]] = {}
    summaries: dict[str, Mapping[str, Any]] = {}
    differs = {row.name: row.differs for row in definition.rows}
    notes = [f"{name}: {text}" for name, text in differs.items() if text]
    for row in planned.rows:
        cells: dict[str, float] = {}
        for part in row.parts:
            found = looks[part.job.name]
            if found.result is None:
                continue
            cells |= part.read(found.result)
            if "protocol" in found.result:
                summaries[row.name] = found.result
        lines.append(Line(row.name, OURS, row.finish(cells), row.section))
        if lacks := _lacks(row, looks):
            not_here[row.name] = tuple(dict.fromkeys([*not_here.get(row.name, ()), *lacks]))
    lines = _with_published(definition, lines)
    return Sheet(
        title=f"{definition.paper}. {definition.title}; percent",
        columns=planned.columns,
        lines=tuple(lines),
        remarks=definition.remarks,
        notes=(*definition.notes, *notes),
        protocol=protocol_lines(summaries),
        not_here=not_here,
    )


def _lacks(row: Row, looks: Mapping[str, Look]) -> list[str]:
    """What the jobs of a row that have no result lack, each in one line."""
    told: list[str] = []
    for part in row.parts:
        found = looks[part.job.name]
        if found.result is None:
            told += [" ".join(problem.split()) for problem in found.problems] or ["not run yet: leave out --dry-run"]
    return told


def _with_published(definition: Definition, ours: Sequence[Line]) -> list[Line]:
    """What others printed, below our line of the same row and section; sections in the order of both."""
    theirs = [Line(one.row, one.source, one.cells, one.section, tuple(one.remarks)) for one in definition.published]
    sections = list(dict.fromkeys(line.section for line in [*ours, *theirs]))
    lines: list[Line] = []
    for section in sections:
        mine = [line for line in ours if line.section == section]
        others = [line for line in theirs if line.section == section]
        for row in dict.fromkeys(line.row for line in [*mine, *others]):
            lines += [line for line in [*mine, *others] if line.row == row]
    return lines
