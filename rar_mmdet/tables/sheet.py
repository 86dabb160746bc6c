"""A finished table, and how it looks as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORMATS", "OURS", "Line", "Sheet"]

OURS = "ours"
ABSENT = "-"
LONG = 8  # letters of a heading that stands in one line


@dataclass(frozen=True)
class Line:
    """One row, by us or as somebody printed it."""

    row: str
    whose: str  # OURS, or who printed it and where
    cells: Mapping[str, float]  # column -> percent; a column that is not here has no value
    section: str = ""
    remarks: tuple[str, ...] = ()  # keys of the sheet's remarks


@dataclass(frozen=True)
class Sheet:
    """A table."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    remarks: Mapping[str, str]  # key -> text
    notes: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()  # what our numbers belong to
    not_here: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # row that has not run -> what it lacks

    def as_text(self) -> str:
        """For a terminal."""
        marks = self._marks()
        headings = [_wrapped(column) for column in self.columns]
        depth = max(map(len, headings), default=1)
        heads = [
            ("", "", *(([""] * (depth - len(words)) + words)[level] for words in headings), "")
            for level in range(depth)
        ]
        rows = [(*self._heads(line), *self._cells(line), _marked(line, marks)) for line in self.lines]
        widths = [max(len(row[i]) for row in [*heads, *rows]) for i in range(len(heads[0]))]
        printed = [_joined(row, widths) for row in heads]
        section = ""
        for row, line in zip(rows, self.lines, strict=True):
            if line.section != section:
                section = line.section
                printed += ["", section]
            printed.append(_joined(row, widths))
        return "\n".join([self.title, "", *printed, *self._below(marks, "")])

    def as_markdown(self) -> str:
        """For a page."""
        marks = self._marks()
        has_sections = any(line.section for line in self.lines)
        head = [*(["part"] if has_sections else []), "row", "whose", *self.columns, "remarks"]
        printed = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for line in self.lines:
            cells = [*([line.section] if has_sections else []), line.row, line.whose, *self._cells(line)]
            printed.append("| " + " | ".join(_escaped(cell) for cell in [*cells, _marked(line, marks)]) + " |")
        return "\n".join([f"## {self.title}", "", *printed, *self._below(marks, "- ")])

    def as_csv(self) -> str:
        """One line for each row; percent, as many digits as there are."""
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["section", "row", "whose", *self.columns, "remarks"])
        for line in self.lines:
            cells = [line.cells.get(column, "") for column in self.columns]
            table.writerow([line.section, line.row, line.whose, *cells, " ".join(line.remarks)])
        return stream.getvalue().rstrip("\n")

    def as_json(self) -> str:
        """Everything; percent."""
        content: dict[str, Any] = {
            "title": self.title,
            "unit": "percent",
            "columns": list(self.columns),
            "lines": [
                {
                    "section": line.section,
                    "row": line.row,
                    "whose": line.whose,
                    "cells": dict(line.cells),
                    "remarks": list(line.remarks),
                }
                for line in self.lines
            ],
            "remarks": dict(self.remarks),
            "notes": list(self.notes),
            "protocol": list(self.protocol),
            "not_here": {row: list(lacks) for row, lacks in self.not_here.items()},
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    def _marks(self) -> dict[str, int]:
        """Number of each remark that a line of this sheet has."""
        used = dict.fromkeys(key for line in self.lines for key in line.remarks)
        return {key: number for number, key in enumerate(used, 1)}

    def _heads(self, line: Line) -> tuple[str, str]:
        place = self.lines.index(line)
        above = self.lines[place - 1] if place else None
        repeats = above is not None and (above.section, above.row) == (line.section, line.row)
        return ("" if repeats else line.row), line.whose

    def _cells(self, line: Line) -> list[str]:
        return [_number(line.cells.get(column), as_printed=line.whose != OURS) for column in self.columns]

    def _below(self, marks: Mapping[str, int], bullet: str) -> list[str]:
        """Remarks, notes, protocol and what is not here, each under its head."""
        parts = [
            ("Remarks", [f"[{number}] {self.remarks[key]}" for key, number in marks.items()]),
            ("Notes", list(self.notes)),
            ("Protocol of our numbers", list(self.protocol)),
            *self._not_here(),
        ]
        lines: list[str] = []
        for head, texts in parts:
            if texts:
                gap = [""] if bullet else []
                lines += ["", f"{head}:", *gap, *(f"{bullet or '  '}{text}" for text in texts)]
        return lines

    def _ours(self) -> set[str]:
        return {line.row for line in self.lines if line.whose == OURS}

    def _not_here(self) -> list[tuple[str, list[str]]]:
        """A line for each row that has not run, and below these a line for each thing that is missing."""
        lacks = list(dict.fromkeys(lack for row in self.not_here.values() for lack in row))
        letters = {lack: f"({_letter(number)})" for number, lack in enumerate(lacks)}
        rows = [f"{row}: {' '.join(letters[lack] for lack in row_lacks)}" for row, row_lacks in self.not_here.items()]
        if len(rows) > 1 and len(set(self.not_here.values())) == 1 and len(self.not_here) == len(self._ours()):
            rows = [f"each row: {' '.join(letters.values())}"]
        return [("Not run here", rows), ("What these lack", [f"{letter} {lack}" for lack, letter in letters.items()])]


FORMATS = {
    "text": (Sheet.as_text, "txt"),
    "markdown": (Sheet.as_markdown, "md"),
    "csv": (Sheet.as_csv, "csv"),
    "json": (Sheet.as_json, "json"),
}


def _number(value: float | None, as_printed: bool) -> str:
    """One decimal, or two where others printed two; -1 is what evaluators say where there is nothing to find.

    >>> _number(57.0, True), _number(51.63, True), _number(None, True), _number(94.01, False), _number(-100.0, False)
    ('57.0', '51.63', '-', '94.0', '-')
    """
    if value is None or value < 0:
        return ABSENT
    return f"{value:.2f}" if as_printed and round(value, 1) != value else f"{value:.1f}"


def _wrapped(column: str) -> list[str]:
    """The lines of a heading: at spaces, and long ones at underscores.

    >>> _wrapped("AP_r"), _wrapped("stanford_cars cACC")
    (['AP_r'], ['stanford', 'cars', 'cACC'])
    """
    return column.replace("_", " ").split() if len(column) > LONG else column.split()


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    """Heads to the left, numbers to the right, marks behind."""
    heads = [row[i].ljust(widths[i]) for i in (0, 1)]
    cells = [row[i].rjust(widths[i]) for i in range(2, len(row) - 1)]
    return "  ".join([*heads, *cells, row[-1]]).rstrip()


def _letter(number: int) -> str:
    """a to z, then aa, ab, ...

    >>> _letter(0), _letter(25), _letter(26)
    ('a', 'z', 'aa')
    """
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _marked(line: Line, marks: Mapping[str, int]) -> str:
    return "".join(f"[{marks[key]}]" for key in line.remarks)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
