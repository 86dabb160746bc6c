"""From the definition of a table to its rows: which jobs each needs, and which of their numbers stand where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rar_mmdet.files.shipped import shipped
from rar_mmdet.tables.definitions import Definition
from rar_mmdet.tables.jobs import Job, Look
from rar_mmdet.tables.protocol import protocol_lines
from rar_mmdet.tables.sheet import OURS, Line, Sheet

__all__ = ["Cells", "Options", "Part", "Plan", "Row", "default_configs", "sheet_of"]

Cells = Mapping[str, float]


def default_configs() -> Path:
    """Those of the project, as short as a command that is printed can name them."""
    folder = shipped("configs")
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


@dataclass(frozen=True)
class Options:
    """What the command line says of all tables."""

    configs: Path = field(default_factory=default_configs)
    work_dirs: Path = Path("work_dirs")
    num_images: int | None = None  # of boxes
    gpus: int = 1
    given: tuple[tuple[str, Path], ...] = ()  # rows of the user's own: name, and where its numbers are
    shots: tuple[str, ...] = ("4",)  # exemplars of each class of whole photos, or WHOLE_TRAIN
    seeds: tuple[int, ...] = (1, 2, 3)  # of the draws of exemplars and of photos whose names are found
    limit: int | None = None  # of whole photos
    wordnet: Path | None = None  # dictionary folder
    guesses: Path | None = None  # folder of files of guessed names, one for each set


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
            problems = ["; ".join(map(str.strip, problem.splitlines())) for problem in found.problems]
            told += problems or ["not run yet: leave out --dry-run"]
    return told


def _with_published(definition: Definition, ours: Sequence[Line]) -> list[Line]:
    """What others printed, below our line of the same row; of the sections that ours have."""
    asked = {line.section for line in ours}
    published = [one for one in definition.published if one.section in asked or not ours]
    theirs = [Line(one.row, one.source, one.cells, one.section, tuple(one.remarks)) for one in published]
    sections = list(dict.fromkeys(line.section for line in [*ours, *theirs]))
    lines: list[Line] = []
    for section in sections:
        mine = [line for line in ours if line.section == section]
        others = [line for line in theirs if line.section == section]
        for row in dict.fromkeys(line.row for line in [*mine, *others]):
            lines += [line for line in [*mine, *others] if line.row == row]
    return lines
