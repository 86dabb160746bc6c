"""One region as one line of JSON: what a run knew about it. Tables, figures and review pages are drawn from these.

A record names its candidates, so that a file of records can be read without the vocabulary or the annotations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.errors import RecordFileError
from rar_mmdet.structures import RankStatus, Recognition

__all__ = ["NEVER", "RegionRecord", "describe_regions", "read_records", "write_records"]

NEVER = 1 << 30  # place of a truth that is not among what was kept of the shortlist
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
KEPT_COLUMNS = 20  # of the shortlist: enough for recall@20, light enough for a million regions


@dataclass(frozen=True)
class RegionRecord:
    """What happened to one region.

    Lists have one entry for each kept shortlist column, best of retrieval first; `order`, `log_probs` have K entries.
    """

    image: str | int  # id of the image in the annotations, or its file
    region: int  # row of the region in its image
    box_xyxy: tuple[float, ...]  # original, upright pixels
    box_score: float  # in [0, 1]; 1 when the box is given
    category_ids: tuple[int, ...]  # labels: rows of the vocabulary
    names: tuple[str, ...]
    probs: tuple[float, ...]  # retrieval: softmax over the full vocabulary
    fused: tuple[float, ...]  # after ranking
    status: str  # name of a RankStatus in lower case; 'skipped' where no ranker was asked
    order: tuple[int, ...] = ()  # columns as the ranker ordered them
    log_probs: tuple[float, ...] | None = None  # of the K candidates, as the ranker sees them
    label_mass: float | None = None  # probability the model gave to any label
    presence: float | None = None  # that any of the candidates is right, as the model sees it
    preferred: tuple[int, ...] | None = None  # column the ranker put first in each order of the prompt; -1: none
    reply: str | None = None  # what the model wrote
    truth: int | None = None  # label of the annotated object, if known
    truth_name: str | None = None
    file: str | None = None  # the image's file, if known
    outline: tuple[Any, ...] | None = None  # of its mask, if known: polygons [x1, y1, ...], original, upright pixels

    @property
    def has_opinion(self) -> bool:
        """Whether a ranker was asked and said something of use."""
        return self.status in ("ok", "partial")

    def truth_places(self) -> tuple[int, int, int]:
        """Where the truth stands, 0 being first: by retrieval, by fused score, and in the ranker's own order.

        `NEVER` where it is not among the kept columns or is not known. Equal scores keep the order of retrieval, as do
        columns that the ranker did not order.
        """
        if self.truth not in self.category_ids:
            return NEVER, NEVER, NEVER
        column = self.category_ids.index(self.truth)
        fused = sorted(range(len(self.category_ids)), key=lambda i: -self.fused[i])
        order = self.order if self.has_opinion else ()
        return column, fused.index(column), order.index(column) if column in order else column

    def to_json(self) -> str:
        """One line; fields that are `None` are left out."""
        return _ENCODER.encode({name: value for name, value in vars(self).items() if value is not None})

    @staticmethod
    def from_json(line: str) -> RegionRecord:
        """From `to_json`.

        Raises:
            RecordFileError: the line is no record.
        """
        try:
            content = json.loads(line)
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            return RegionRecord(**fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise RecordFileError(f"not a region record: {line[:80]!r} ({error})") from error


def _numbers(values: torch.Tensor) -> list[Any]:
    """Nested lists of numbers, floats at the 7 digits that a float32 has."""
    line = " ".join(["%.7g"] * values.shape[1])
    return [[float(number) for number in (line % tuple(row)).split()] for row in values.tolist()]


def _known(values: torch.Tensor | None, count: int) -> list[float | None]:
    """One number for each region, `None` where it is NaN or there are none."""
    return [None] * count if values is None else [v if v == v else None for v in values.tolist()]


def _any_column(columns: list[int]) -> tuple[int, ...] | None:
    return tuple(columns) if max(columns) >= 0 else None


def describe_regions(
    recognition: Recognition,
    image: str | int,
    *,
    truth: Sequence[int] | None = None,
    file: str | None = None,
) -> list[RegionRecord]:
    """Records of the R regions of one image.

    Args:
        recognition: what the recogniser found.
        image: id or file of the image.
        truth: R labels of the annotated objects, -1 where there is none; `None` when nothing is annotated.
        file: the image's file.
    """
    ranking = recognition.ranking
    columns = max(KEPT_COLUMNS, ranking.order.shape[1])  # all that was ranked
    best = recognition.shortlist.head(columns)
    ids, probs = best.category_ids.tolist(), _numbers(best.probs)
    fused = _numbers(recognition.fused[:, :columns])
    boxes = [[round(v, 3) for v in box] for box in recognition.boxes_xyxy.tolist()]
    box_scores, order = recognition.box_scores.tolist(), ranking.order.tolist()
    log_probs = None if ranking.log_probs is None else _numbers(ranking.log_probs)
    mass, presence = _known(ranking.label_mass, len(recognition)), _known(ranking.presence, len(recognition))
    preferred = None if ranking.preferred is None else ranking.preferred.tolist()
    names = recognition.category_names
    scored = (ranking.has_opinion & ranking.has_log_probs).tolist()
    records = []
    for region, status in enumerate(ranking.status.tolist()):
        label = None if truth is None or truth[region] < 0 else int(truth[region])
        asked = status != RankStatus.SKIPPED
        records.append(
            RegionRecord(
                image=image,
                region=region,
                box_xyxy=tuple(boxes[region]),
                box_score=round(box_scores[region], 6),
                category_ids=tuple(ids[region]),
                names=tuple(map(names.__getitem__, ids[region])),
                probs=tuple(probs[region]),
                fused=tuple(fused[region]),
                status=RankStatus(status).name.lower(),
                order=tuple(order[region]) if asked else (),
                log_probs=tuple(log_probs[region]) if log_probs and scored[region] else None,
                label_mass=mass[region],
                presence=presence[region],
                preferred=_any_column(preferred[region]) if preferred else None,
                reply=ranking.replies[region] if ranking.replies else None,
                truth=label,
                truth_name=None if label is None else names[label],
                file=file,
            )
        )
    return records


def write_records(path: str | Path, records: Iterable[RegionRecord], append: bool = False) -> int:
    """Write records, one a line; how many."""
    count = 0
    with open(path, "a" if append else "w", encoding="utf-8") as stream:
        for record in records:
            stream.write(record.to_json() + "\n")
            count += 1
    return count


def read_records(path: str | Path) -> Iterator[RegionRecord]:
    """The records of a file, one at a time.

    Raises:
        RecordFileError: a line is no record; the file and the line are named.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield RegionRecord.from_json(line)
                except RecordFileError as error:
                    raise RecordFileError(
                        f"{path}, line {number}: {error}. Was the run stopped while writing? Run it again"
                    ) from error
    except UnicodeDecodeError as error:
        raise RecordFileError(f"{path} is not UTF-8 text; expected the regions.jsonl of a run") from error
    except OSError as error:
        raise RecordFileError(f"{path} cannot be read: {error.strerror}") from error
