"""Single regions to look at: crop, what retrieval offered, what ranking made of it. Chosen by rule, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.drawing import crop_address
from rar_mmdet.errors import ImageReadError
from rar_mmdet.files.images import read_image
from rar_mmdet.records import RegionRecord
from rar_mmdet.report.runs import Run

__all__ = ["Bar", "Panel", "Pictures", "choose", "panel_of"]

IntArray = NDArray[np.int64]
LISTED = 5  # names of each list


@dataclass(frozen=True)
class Bar:
    """One name of a list."""

    name: str
    share: float  # of 1
    is_truth: bool


@dataclass(frozen=True)
class Panel:
    """One region."""

    where: str  # photo and region
    truth: str
    picture: str | None  # JPEG as a data address; None where the photo cannot be read
    retrieved: tuple[Bar, ...]
    ranked: tuple[Bar, ...]  # by fused score; empty where no ranker had a say


def choose(run: Run, count: int, seed: int = 0) -> dict[str, IntArray]:
    """Rows of regions by rule: at most `count` of each kind.

    'improved most': ranking made them right, retrieval having been surest of the wrong name; 'harmed most': ranking
    made them wrong, being surest; 'surest where nothing is annotated'; 'at random': drawn with the seed among the
    annotated ones, or among all where nothing is annotated.
    """
    before, after = run.retrieval.correct, run.fused.correct
    found = {}
    for title, members, sure in (
        ("improved most", after & ~before, run.retrieval.confidence),
        ("harmed most", before & ~after, run.fused.confidence),
    ):
        rows = np.flatnonzero(members & run.has_truth)
        found[title] = rows[np.argsort(-sure[rows], kind="stable")[:count]]
    if run.has_truth.any():
        rows = np.flatnonzero(~run.has_truth & run.fused.spoke)
        found["surest where nothing is annotated"] = rows[
            np.argsort(-run.fused.confidence[rows], kind="stable")[:count]
        ]
    rows = np.flatnonzero(run.has_truth) if run.has_truth.any() else np.arange(len(run))
    found["at random"] = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    return {title: rows for title, rows in found.items() if len(rows)}


def panel_of(record: RegionRecord, pictures: Pictures) -> Panel:
    """What a page shows of one region."""
    by_fused = sorted(range(len(record.fused)), key=lambda i: -record.fused[i])
    return Panel(
        where=f"{Path(record.file).name if record.file else record.image}, region {record.region}",
        truth=record.truth_name or "nothing annotated",
        picture=pictures.crop(record),
        retrieved=_bars(record, range(len(record.probs)), record.probs),
        ranked=_bars(record, by_fused, record.fused) if record.has_opinion else (),
    )


def _bars(record: RegionRecord, columns: Iterable[int], shares: Sequence[float]) -> tuple[Bar, ...]:
    return tuple(
        Bar(record.names[i], min(max(shares[i], 0.0), 1.0), record.category_ids[i] == record.truth)
        for i in list(columns)[:LISTED]
    )


class Pictures:
    """Crops of photos as small JPEGs; photos that cannot be read are counted, once each.

    Args:
        side: longest side in pixels.
    """

    def __init__(self, side: int = 112) -> None:
        self._side = side
        self.missing: set[str] = set()
        self._last: tuple[str, NDArray[np.uint8]] | None = None

    def crop(self, record: RegionRecord) -> str | None:
        """The box and a quarter around it."""
        if record.file is None or record.file in self.missing:
            return None
        if self._last is None or self._last[0] != record.file:
            try:
                self._last = record.file, read_image(record.file)
            except ImageReadError:
                self.missing.add(record.file)
                return None
        return crop_address(self._last[1], record.box_xyxy, side=self._side)
