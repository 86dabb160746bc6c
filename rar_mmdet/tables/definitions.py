"""What each table holds (definitions.json) and what others printed in it (published.json): data, no code."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rar_mmdet.errors import ConfigError

__all__ = ["Definition", "Published", "RowSpec", "read_definitions"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """A row as somebody printed it."""

    row: str
    source: str  # who, and in which table
    cells: Mapping[str, float]  # column -> percent, as printed
    section: str = ""  # the part of the table, such as a number of shots
    remarks: Sequence[str] = ()  # keys of the definition's remarks


@dataclass(frozen=True)
class RowSpec:
    """A row of ours."""

    name: str
    settings: Mapping[str, Any]  # what its kind of table reads, such as `config`
    needs_gpu: bool = False
    differs: str = ""  # how it differs from the published row of this name


@dataclass(frozen=True)
class Definition:
    """A table."""

    name: str
    kind: str  # who plans its rows: a key of `rows.KINDS`
    paper: str  # which table of the paper it is
    title: str
    settings: Mapping[str, Any]  # of its kind, such as `columns` or `sets`
    rows: tuple[RowSpec, ...]
    remarks: Mapping[str, str] = field(default_factory=dict)  # key -> text, of published rows
    notes: tuple[str, ...] = ()  # of the table
    published: tuple[Published, ...] = ()

    def choose(self, wanted: Sequence[str]) -> Definition:
        """The table with those rows alone whose names contain one of these texts, in any case.

        Raises:
            ConfigError: a text is in no row's name.
        """
        names = list(dict.fromkeys([*(row.name for row in self.rows), *(one.row for one in self.published)]))
        chosen: set[str] = set()
        for text in wanted:
            found = {name for name in names if text.casefold() in name.casefold()}
            if not found:
                raise ConfigError(f"table {self.name!r} has no row with {text!r} in its name; rows: {'; '.join(names)}")
            chosen |= found
        return Definition(
            **{
                **self.__dict__,
                "rows": tuple(row for row in self.rows if row.name in chosen),
                "published": tuple(one for one in self.published if one.row in chosen),
            }
        )


@functools.cache
def read_definitions() -> dict[str, Definition]:
    """All tables, by name."""
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
    content = json.loads((HERE / "definitions.json").read_text(encoding="utf-8"))
    return {name: _definition(name, entry, published.get(name, [])) for name, entry in content.items()}


def _definition(name: str, entry: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> Definition:
    own = {"kind", "paper", "title", "rows", "remarks", "notes"}
    return Definition(
        name=name,
        kind=entry["kind"],
        paper=entry["paper"],
        title=entry["title"],
        settings={key: value for key, value in entry.items() if key not in own},
        rows=tuple(_row(row) for row in entry.get("rows", [])),
        remarks=entry.get("remarks", {}),
        notes=tuple(entry.get("notes", [])),
        published=tuple(Published(**one) for one in published),
    )


def _row(entry: Mapping[str, Any]) -> RowSpec:
    settings = {key: value for key, value in entry.items() if key not in ("name", "gpu", "differs")}
    return RowSpec(entry["name"], settings, bool(entry.get("gpu")), entry.get("differs", ""))
