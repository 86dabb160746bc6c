"""Rows of records.jsonl, as `rar-mmdet finetune data` writes them, as questions with their answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.errors import DatasetError, MissingAssetError
from rar_mmdet.files.images import read_image
from rar_mmdet.finetune.exports import answer_places
from rar_mmdet.rankers.prompts import clean_candidate
from rar_mmdet.rankers.questions import Ask, Question
from rar_mmdet.regions import RegionCropper

__all__ = ["RankingRow", "TaughtQuestion", "TaughtQuestions", "hold_out", "read_rows"]

HELD_CROPS = 4096  # in memory, so that the questions about one photo read it once (ours)


@dataclass(frozen=True)
class RankingRow:
    """One question of no particular wording."""

    photo: str  # where it is
    names: tuple[str, ...]  # in the order of the record
    truth: int  # place of the right one
    target: tuple[int, ...]  # places in the order of the answer
    box_xyxy: tuple[float, float, float, float] | None = None  # in pixels of the upright photo; None: all of it


def read_rows(file: str | Path) -> list[RankingRow]:
    """All rows of a file of records.

    Raises:
        MissingAssetError: there is no such file.
        DatasetError: a line is no record; it is named.
    """
    path = Path(file)
    if not path.is_file():
        raise MissingAssetError(
            f"records {path}: there is no such file; `rar-mmdet finetune data CONFIG --out {path.parent}` makes it"
        )
    with open(path, encoding="utf-8") as stream:
        rows = [_row(line, path, number) for number, line in enumerate(stream, 1)]
    if not rows:
        raise DatasetError(f"{path} is empty; nothing can be learned from it")
    return rows


def _row(line: str, path: Path, number: int) -> RankingRow:
    try:
        record = json.loads(line)
        names, target = tuple(record["names"]), tuple(record["target"])
        box = record.get("box_xyxy")
        row = RankingRow(record["photo"], names, record["truth"], target, None if box is None else tuple(box))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}, line {number} is no record of `rar-mmdet finetune data`: {type(error).__name__} {error}"
        ) from error
    if not 0 <= row.truth < len(names) or sorted(target) != list(range(len(names))):
        raise DatasetError(
            f"{path}, line {number}: truth {row.truth} and target {list(target)} do not fit {len(names)} names"
        )
    return row


def hold_out(rows: Sequence[RankingRow], count: int, seed: int) -> tuple[list[RankingRow], list[RankingRow]]:
    """Rows to learn from, and about `count` to look at: of other photos, at most one in twenty of all.

    Args:
        rows: all.
        count: rows to look at.
        seed: of the draw.
    """
    photos = sorted({row.photo for row in rows})
    drawn = np.random.default_rng(seed).permutation(len(photos)).tolist()
    most, per_photo = max(1, len(photos) // 20), len(rows) / len(photos)
    held = {photos[place] for place in drawn[: min(most, max(1, round(count / per_photo)))]} if count else set()
    kept = [row for row in rows if row.photo not in held]
    return kept, [row for row in rows if row.photo in held][:count]


@dataclass(frozen=True)
class TaughtQuestion:
    """A question as the model will be asked it, and what it should answer to each text."""

    question: Question
    texts: tuple[str, ...]
    answers: tuple[str, ...]


class TaughtQuestions(torch.utils.data.Dataset[TaughtQuestion]):
    """Rows put into words, one way to ask a row, drawn by its number; photos are read when their row is wanted.

    Args:
        rows: to ask.
        asks: ways to ask; which one a row gets depends on seed and number alone.
        cropper: how a photo, or a box on it, becomes a crop; with its size.
        special: texts the model obeys rather than reads (`AskingRanker.special_tokens`).
        seed: of the ways.
    """

    def __init__(
        self,
        rows: Sequence[RankingRow],
        asks: Sequence[Ask],
        cropper: RegionCropper,
        special: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        self.rows, self.asks, self.cropper, self.seed = list(rows), tuple(asks), cropper, seed
        self._special = tuple(special)
        self._crop = lru_cache(maxsize=HELD_CROPS)(self._read)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_crop"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._crop = lru_cache(maxsize=HELD_CROPS)(self._read)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TaughtQuestion:
        ask = self.ask_of(index)
        question, order = self.question(index, ask)
        row = self.rows[index]
        target = [order.index(place) for place in answer_places(ask, row.truth, row.target)]
        return TaughtQuestion(question, tuple(ask.texts(question)), tuple(ask.target(question, target)))

    def ask_of(self, index: int) -> Ask:
        """The way in which that row is asked."""
        if len(self.asks) == 1:
            return self.asks[0]
        return self.asks[int(np.random.default_rng([self.seed, index]).integers(len(self.asks)))]

    def question(self, index: int, ask: Ask) -> tuple[Question, list[int]]:
        """The question in a way's own order of names, and that order: places of the row as they are shown."""
        row = self.rows[index]
        names = [clean_candidate(name, self._special) for name in row.names]
        order = ask.shown_order(names)
        shown = tuple(names[place] for place in order)
        return Question(self._crop(row.photo, row.box_xyxy), shown), order

    def _read(self, photo: str, box: tuple[float, float, float, float] | None) -> Tensor:
        """(3, S, S) uint8."""
        pixels = read_image(photo)
        height, width = pixels.shape[:2]
        return self.cropper.crop(pixels, [box or (0, 0, width, height)])[0].contiguous()
