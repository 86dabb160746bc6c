"""A run as its folder holds it: regions.jsonl as arrays, and summary.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rar_mmdet.errors import RecordFileError
from rar_mmdet.records import RegionRecord, read_records
from rar_mmdet.report.sureness import Reliability, reliability

__all__ = ["Judged", "Run", "Stage", "read_object", "read_run", "read_summary"]

RECORDS, SUMMARY = "regions.jsonl", "summary.json"
SCORES = "scores.json"  # what `rar-mmdet score RESULTS --errors --json` wrote there, if it was asked to
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Stage:
    """What one stage (retrieval, ranker, both together) says of N regions."""

    place: IntArray  # (N,) of the truth, 0 first; NEVER where it is not in the list or there is no truth
    confidence: FloatArray  # (N,) of its first name; NaN where it said nothing

    @cached_property
    def correct(self) -> BoolArray:
        """(N,) its first name is the true one."""
        return self.place == 0

    @cached_property
    def spoke(self) -> BoolArray:
        """(N,) it said something."""
        return ~np.isnan(self.confidence)


@dataclass(frozen=True)
class Judged:
    """What a stage said of M annotated objects, where its confidence is a probability."""

    stage: str
    confidence: FloatArray  # (M,) in [0, 1]
    correct: BoolArray  # (M,)
    reliability: Reliability


@dataclass(frozen=True)
class Run:
    """N regions of a run."""

    name: str
    file: Path  # of the records
    summary: dict[str, Any]  # of summary.json; empty where there is none
    keys: tuple[tuple[str, int], ...]  # N of (image, row of the region in it)
    truth: IntArray  # (N,) label; -1 where no object is annotated there
    named: IntArray  # (N,) label of the best fused score
    offered: IntArray  # (N,) names that the ranker was asked about; 0: it was not asked
    retrieval: Stage
    ranker: Stage
    fused: Stage
    margin: FloatArray  # (N,) retrieval's first probability less its second
    area: FloatArray  # (N,) square pixels
    presence: FloatArray  # (N,) that any offered name is right, as the ranker sees it; NaN: unknown
    preferred: IntArray  # (N, S) the same in each of S orders of the prompt; -1: unknown; S is 0 where it was one order
    names: dict[int, str]  # label -> name, of all labels that occur

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def has_truth(self) -> BoolArray:
        """(N,) an annotated object is there."""
        return self.truth >= 0

    @property
    def recognizer(self) -> dict[str, Any]:
        """The settings of the run's only recogniser; empty where they are not known."""
        found = list(self.summary.get("protocol", {}).get("recognizers", {}).values())
        return found[0] if len(found) == 1 else {}

    def name_of(self, label: int) -> str:
        """The name of a label that occurs; its number, of another one."""
        return self.names.get(label, str(label))

    @property
    def is_ranked(self) -> bool:
        """Whether a ranker had a say in any region."""
        return bool(self.ranker.spoke.any())

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """By the name a page gives them; without those that said nothing."""
        ranked = {"ranker": self.ranker, "fused": self.fused} if self.is_ranked else {}
        return {"retrieval": self.retrieval, **ranked}

    @cached_property
    def judged(self) -> list[Judged]:
        """Of each stage whose confidence is one; made once, for intervals take a while."""
        found = []
        for name, stage in self.stages.items():
            rows = self.has_truth & stage.spoke
            confidence, correct = stage.confidence[rows], stage.correct[rows]
            if len(confidence) and confidence.max() <= 1 + 1e-6:
                confidence = np.clip(confidence, 0, 1)
                found.append(Judged(name, confidence, correct, reliability(confidence, correct)))
        return found

    def presence_scores(self) -> list[tuple[str, FloatArray, BoolArray]]:
        """What may tell regions with an annotated object from those without, where there are both.

        Returns:
            Name, (M,) scores of the regions that have one, (M,) whether an object is there: of each stage its
            confidence, and what the ranker says of any offered name being right.
        """
        scores = {name: stage.confidence for name, stage in self.stages.items()} | {"ranker, any name": self.presence}
        found = []
        for name, values in scores.items():
            rows = ~np.isnan(values)
            if 0 < self.has_truth[rows].sum() < rows.sum():
                found.append((name, values[rows], self.has_truth[rows]))
        return found

    def records(self, rows: IntArray) -> Iterator[RegionRecord]:
        """The records of these rows, in file order; the file is read again."""
        wanted = set(rows.tolist())
        with open(self.file, encoding="utf-8") as lines:
            for row, line in enumerate(lines):
                if row in wanted:
                    yield RegionRecord.from_json(line)


def read_run(path: str | Path, name: str | None = None) -> Run:
    """Read the folder of a run, or a file of records alone.

    Args:
        path: folder with regions.jsonl and, if there is one, summary.json; or a .jsonl file of records.
        name: what the page calls it; the folder's name by default.

    Raises:
        RecordFileError: there are no records, or a line is none.
    """
    path = Path(path)
    file = path / RECORDS if path.is_dir() else path
    if not file.is_file():
        raise RecordFileError(
            f"{path} holds no {RECORDS}: give the folder of a run of tools/test.py (--work-dir), or a file of records"
        )
    summary = read_summary(path) if path.is_dir() else {}
    rows: list[tuple[float, ...]] = []
    keys: list[tuple[str, int]] = []
    names: dict[int, str] = {}
    preferred: list[tuple[int, ...]] = []
    with tqdm(desc=f"read {file.parent.name}", unit="region", disable=None, leave=False) as bar:
        for record in read_records(file):
            rows.append(_row(record))
            keys.append((str(record.image), record.region))
            preferred.append(record.preferred or ())
            names.update(zip(record.category_ids, record.names, strict=True))
            if record.truth is not None and record.truth_name is not None:
                names[record.truth] = record.truth_name
            bar.update()
    table = np.array(rows, np.float64).reshape(-1, 12)
    whole = table[:, :6].astype(np.int64)
    width = max(map(len, preferred), default=0)
    return Run(
        name=name or (path.resolve().name if path.is_dir() else path.stem),
        file=file,
        summary=summary,
        keys=tuple(keys),
        truth=whole[:, 0],
        named=whole[:, 1],
        offered=whole[:, 2],
        retrieval=Stage(whole[:, 3], table[:, 6]),
        ranker=Stage(whole[:, 5], table[:, 8]),
        fused=Stage(whole[:, 4], table[:, 7]),
        margin=table[:, 9],
        area=table[:, 10],
        presence=table[:, 11],
        preferred=np.array([(*row, *[-1] * (width - len(row))) for row in preferred], np.int64).reshape(
            len(rows), width
        ),
        names=names,
    )


def _row(record: RegionRecord) -> tuple[float, ...]:
    retrieval, fused, reordered = record.truth_places()
    best = max(range(len(record.fused)), key=record.fused.__getitem__) if record.fused else 0
    x1, y1, x2, y2 = record.box_xyxy
    probs = (*record.probs, 0.0, 0.0)
    return (
        -1 if record.truth is None else record.truth,
        record.category_ids[best] if record.category_ids else -1,
        len(record.order),
        retrieval,
        fused,
        reordered,
        probs[0] if record.probs else np.nan,
        record.fused[best] if record.fused else np.nan,
        _ranker_confidence(record),
        probs[0] - probs[1],
        (x2 - x1) * (y2 - y1),
        np.nan if record.presence is None else record.presence,
    )


def _ranker_confidence(record: RegionRecord) -> float:
    """Probability of its first name among the offered ones; 1 where it answered without probabilities; else NaN."""
    if not record.has_opinion:
        return np.nan
    if record.log_probs is None:
        return 1.0
    values = np.exp(np.array(record.log_probs) - max(record.log_probs))
    return float(values[record.order[0]] / values.sum())


def read_summary(folder: Path) -> dict[str, Any]:
    """What summary.json of a run holds, with the numbers of scores.json among its metrics; empty where neither is.

    Raises:
        RecordFileError: a file is not one JSON object.
    """
    summary, scores = read_object(folder / SUMMARY), read_object(folder / SCORES)
    if scores:
        summary["metrics"] = {**summary.get("metrics", {}), **scores}
    return summary


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds; empty where there is none.

    Raises:
        RecordFileError: it is not one JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordFileError(f"{file} is not JSON: {error}. Run the test again") from error
    if not isinstance(content, dict):
        raise RecordFileError(f"{file} must be one JSON object, got a {type(content).__name__}")
    return content
