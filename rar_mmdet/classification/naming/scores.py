"""From the records of found names to Table 1: cACC and sACC over draws, the floors beside them. No model but sACC's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rar_mmdet.classification.metrics import clustering_accuracy, semantic_floors, semantic_similarity, spelling_form
from rar_mmdet.errors import RecordFileError, ResultFileError
from rar_mmdet.records import RegionRecord

__all__ = [
    "CONSTANT",
    "NamesTable",
    "RANDOM",
    "RANKED",
    "Score",
    "Scorer",
    "predictions",
    "read_summaries",
    "sets_table",
]

RANKED, REORDERED = "+rar", "+rar order"  # as in few-shot tables
CONSTANT, RANDOM = "floor: one name for all", "floor: random names"
RANDOM_DRAWS = 10


@dataclass(frozen=True)
class Score:
    """One row on one draw; fractions, `sacc` is `None` where no sentence encoder was at hand."""

    cacc: float
    sacc: float | None
    names: int  # different names that were predicted


def predictions(records: Sequence[RegionRecord]) -> dict[str, list[str]]:
    """The name that retrieval, the fusion and the ranker's own order give each photo; the latter two where one was
    asked.

    Returns:
        "", RANKED, REORDERED -> Q names.
    """
    found = {"": [record.names[0] for record in records]}
    if any(record.has_opinion for record in records):
        fused = [record.names[max(range(len(record.fused)), key=record.fused.__getitem__)] for record in records]
        order = [record.names[record.order[0]] if record.has_opinion else record.names[0] for record in records]
        found |= {RANKED: fused, REORDERED: order}
    return found


class Scorer:
    """Scores names against the true ones.

    Args:
        labels: Q classes of the test photos.
        class_names: C true names.
        encode: texts -> (T, D) vectors, for sACC; `None`: cACC alone.
    """

    def __init__(
        self, labels: Sequence[int], class_names: Sequence[str], encode: Callable[[Sequence[str]], Tensor] | None
    ) -> None:
        self.labels, self._encode = list(labels), encode
        self.class_names = [spelling_form(name) for name in class_names]
        self._vectors: dict[str, Tensor] = {}

    def score(self, names: Sequence[str]) -> Score:
        """Of one predicted name for each photo.

        Raises:
            RecordFileError: another number of names than photos.
        """
        if len(names) != len(self.labels):
            raise RecordFileError(
                f"{len(names)} records for {len(self.labels)} test photos; remove the file of records"
            )
        different, ids = np.unique(list(names), return_inverse=True)
        cacc = clustering_accuracy(self.labels, ids)
        if self._encode is None:
            return Score(cacc, None, len(different))
        spelled = [spelling_form(name) for name in names]
        truth = [self.class_names[label] for label in self.labels]
        return Score(cacc, semantic_similarity(self._of(spelled), self._of(truth)), len(different))

    def floors(self) -> dict[str, Score]:
        """One name for all photos (the best there is), and names of the true classes at random: no photo is looked at.

        cACC of random names is the mean over ten seeded draws; sACC is its expectation.
        """
        rng = np.random.default_rng(0)
        classes = len(self.class_names)
        shuffled = [
            clustering_accuracy(self.labels, rng.integers(0, classes, len(self.labels))) for _ in range(RANDOM_DRAWS)
        ]
        constant = clustering_accuracy(self.labels, np.zeros(len(self.labels), dtype=np.int64))
        if self._encode is None:
            return {CONSTANT: Score(constant, None, 1), RANDOM: Score(float(np.mean(shuffled)), None, classes)}
        truth = self._of([self.class_names[label] for label in self.labels])
        floors = semantic_floors(self._of(self.class_names), truth)
        return {
            CONSTANT: Score(constant, floors.constant, 1),
            RANDOM: Score(float(np.mean(shuffled)), floors.random, classes),
        }

    def _of(self, names: Sequence[str]) -> Tensor:
        import torch

        new = sorted(set(names) - set(self._vectors))
        if new and self._encode is not None:
            self._vectors |= dict(zip(new, self._encode(new), strict=True))
        return torch.stack([self._vectors[name] for name in names])


@dataclass
class NamesTable:
    """Rows over draws, for one set."""

    dataset: str
    rows: dict[str, list[Score]] = field(default_factory=dict)  # a row that needs no draw has one score

    def text(self) -> str:
        """cACC and sACC in percent, mean ± standard deviation (n - 1) over draws, and how many names were used."""
        width = max(map(len, self.rows)) + 2
        lines = [f"{self.dataset:{width}s}{'cACC':>14s}{'sACC':>14s}{'names':>8s}{'draws':>7s}"]
        for row, scores in self.rows.items():
            used = f"{np.mean([one.names for one in scores]):.0f}"
            cells = _cell([one.cacc for one in scores]), _cell([one.sacc for one in scores])
            lines.append(f"{row:{width}s}{cells[0]:>14s}{cells[1]:>14s}{used:>8s}{len(scores):>7d}")
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """For summary.json: fractions, one for each draw."""
        rows = {
            row: {
                "cACC": [one.cacc for one in scores],
                "sACC": [one.sacc for one in scores],
                "names": [one.names for one in scores],
            }
            for row, scores in self.rows.items()
        }
        return {"dataset": self.dataset, "rows": rows}


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ±{100 * float(np.std(known, ddof=1)):.1f}" if len(known) > 1 else ""
    return f"{100 * float(np.mean(known)):.1f}{spread}"


def read_summaries(folders: Sequence[Path]) -> dict[str, Mapping[str, Mapping[str, Sequence[float | None]]]]:
    """Set -> row -> cACC, sACC of the runs in these folders.

    Raises:
        ResultFileError: a folder holds no such run, or two hold one set.
    """
    found: dict[str, Mapping[str, Mapping[str, Sequence[float | None]]]] = {}
    for folder in folders:
        file = folder / "summary.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            dataset, rows = content["dataset"], content["rows"]
            if not all("cACC" in row for row in rows.values()):
                raise KeyError("cACC")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultFileError(
                f"{folder} holds no run of found names ({error!r}); `rar-mmdet classify CONFIG --names FILE` makes one"
            ) from error
        if dataset in found:
            raise ResultFileError(f"two of the folders are runs of {dataset}; give one for each set")
        found[dataset] = rows
    return found


def sets_table(summaries: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]]) -> str:
    """Table 1's layout: a row a method, cACC and sACC of each set, and their means over the sets that have all."""
    rows = list(dict.fromkeys(row for by_row in summaries.values() for row in by_row))
    width = max(map(len, rows)) + 2
    lines = [
        " " * width + "".join(f"{name[:18]:>20s}" for name in [*summaries, "average"]),
        " " * width + f"{'cACC':>10s}{'sACC':>10s}" * (len(summaries) + 1),
    ]
    for row in rows:
        cells = [
            _mean(by_row[row][metric] if row in by_row else [])
            for by_row in summaries.values()
            for metric in ("cACC", "sACC")
        ]
        averages = [None if None in cells[i::2] else _mean(cells[i::2]) for i in (0, 1)]
        told = ["-" if value is None else f"{100 * value:.1f}" for value in [*cells, *averages]]
        lines.append(f"{row:{width}s}" + "".join(f"{cell:>10s}" for cell in told))
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
