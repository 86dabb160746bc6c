"""COCO result files, read and written a piece at a time.

A result file is one JSON list of `{"image_id", "category_id", "bbox": [x, y, w, h], "score"}` (with `"segmentation"`
for masks); LVIS and V3Det runs write gigabytes of it. Neither direction holds more than a few megabytes of objects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rar_mmdet.errors import ResultFileError
from rar_mmdet.scoring.annotations import Detections

__all__ = ["read_results", "write_results"]

CHUNK_CHARS = 1 << 19  # about 4,000 records: their dictionaries are what costs memory
LONGEST_RECORD = 1 << 24  # characters; a mask of that size would be a mistake
RECORD_BREAK = re.compile(r"\}\s*,\s*(?=\{)")
SPACE = re.compile(r"[\s,]*")


def read_results(
    path: str | Path,
    *,
    keep_segmentations: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Detections:
    """Read a result file into arrays.

    Args:
        path: The file.
        keep_segmentations: Keep masks; their area is then the mask's where a record has no box.
        progress: Called with the number of characters read each time.

    Raises:
        ResultFileError: The file is truncated or not a list, or a record lacks a field or holds NaN or infinity. The
            message counts records from 0.
    """
    images: list[Any] = []
    categories: list[Any] = []
    boxes: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    segmentations: list[Any] = []
    count = 0
    for records in _read_records(Path(path), progress):
        box, score = _numbers(records, count, path, keep_segmentations)
        boxes.append(box)
        scores.append(score)
        images.append(_ids(records, "image_id", count, path))
        categories.append(_ids(records, "category_id", count, path))
        if keep_segmentations:
            segmentations.extend(r.get("segmentation") for r in records)
        count += len(records)
    if not count:
        return Detections.empty()
    areas = None
    if keep_segmentations and any(np.isnan(b).any() for b in boxes):
        areas = _mask_areas(segmentations, path)
    return Detections(
        np.concatenate(images),
        np.concatenate(categories),
        np.concatenate(boxes),
        np.concatenate(scores),
        segmentations if keep_segmentations else None,
        areas,
    )


def write_results(path: str | Path, per_image: Iterable[Sequence[dict[str, Any]]]) -> None:
    """Write records image by image; the text equals `json.dump` of the whole list."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        separator = ""
        for records in per_image:
            if records:
                file.write(separator + json.dumps(records)[1:-1])
                separator = ", "
        file.write("]")


def _read_records(path: Path, progress: Callable[[int], None] | None) -> Iterator[list[dict[str, Any]]]:
    """The records of the list, some thousands at a time."""
    try:
        file = open(path, encoding="utf-8")  # noqa: SIM115 - closed by the with below
    except FileNotFoundError:
        raise ResultFileError(f"result file {path} does not exist") from None
    with file:
        buffer = _open_list(file, path)
        count = 0
        while True:
            text = file.read(CHUNK_CHARS)
            if progress is not None and text:
                progress(len(text))
            buffer += text
            records, buffer = _take_records(buffer, final=not text, count=count, path=path)
            count += len(records)
            if records:
                yield records
            if not text:
                return


def _open_list(file: TextIO, path: Path) -> str:
    text = file.read(4096).lstrip("\ufeff \t\r\n")
    if not text.startswith("["):
        hint = "this looks like an annotation file; give the result file first" if text.startswith("{") else "is empty"
        raise ResultFileError(f"result file {path} is not a JSON list of detections: {hint}")
    return text[1:]


def _take_records(text: str, *, final: bool, count: int, path: Path) -> tuple[list[dict[str, Any]], str]:
    """Complete records at the head of the text, and the rest of the text."""
    if not final:
        cut = text.rfind("}", 0, max(len(text) - 1, 0))
        last = None
        while cut > 0 and last is None:  # the last "}, {" of the text
            last = RECORD_BREAK.match(text, cut)
            if last is None:
                cut = text.rfind("}", 0, cut)
        if last is None:
            return [], text
        try:
            return json.loads(f"[{text[: last.start() + 1]}]"), text[last.end() :]
        except json.JSONDecodeError:
            pass  # the break was inside a record, or a record is broken: go record by record
    return _take_one_by_one(text, final=final, count=count, path=path)


def _take_one_by_one(text: str, *, final: bool, count: int, path: Path) -> tuple[list[dict[str, Any]], str]:
    decoder = json.JSONDecoder()
    records: list[dict[str, Any]] = []
    position = 0
    while True:
        space = SPACE.match(text, position)
        position = space.end() if space is not None else position
        if text.startswith("]", position):
            trailing = text[position + 1 :].strip()
            if final and trailing:
                raise ResultFileError(f"result file {path}: text after the end of the list: {trailing[:40]!r}")
            return records, text[position:]
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if not final and len(text) - position < LONGEST_RECORD:  # the rest of it is still to be read
                return records, text[position:]
            raise ResultFileError(
                f"result file {path}: record {count + len(records)} is not complete JSON ({error.msg}); "
                f"is the file truncated? It breaks near {text[position : position + 60]!r}"
            ) from None
        records.append(record)


def _ids(records: list[dict[str, Any]], key: str, first: int, path: str | Path) -> np.ndarray:
    try:
        values = [r[key] for r in records]
    except (KeyError, TypeError):
        index = next(i for i, r in enumerate(records) if not isinstance(r, dict) or key not in r)
        raise ResultFileError(f"result file {path}: record {first + index} has no {key}: {records[index]!r}") from None
    if all(type(v) is int for v in values):
        return np.array(values, np.int64)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _numbers(records: list[dict[str, Any]], first: int, path: str | Path, masks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and scores (n,) of some records; checked as a whole, then one by one to name the culprit."""
    try:
        boxes = np.array([r["bbox"] for r in records], np.float64)
        scores = np.array([r["score"] for r in records], np.float64)
        if boxes.shape == (len(records), 4) and np.isfinite(boxes).all() and np.isfinite(scores).all():
            return boxes, scores
    except (KeyError, TypeError, ValueError):
        pass  # some record is not as expected; the loop below finds and names it
    boxes, scores = np.full((len(records), 4), np.nan), np.zeros(len(records))
    for i, record in enumerate(records):
        _check_record(record, first + i, path, masks)
        scores[i] = record["score"]
        if record.get("bbox"):
            boxes[i] = record["bbox"]
    return boxes, scores


def _check_record(record: Any, index: int, path: str | Path, masks: bool) -> None:
    where = f"result file {path}: record {index}"
    if not isinstance(record, dict):
        raise ResultFileError(
            f"{where} is {record!r}, expected a dictionary with image_id, category_id, bbox and score"
        )
    score = record.get("score")
    if not _is_number(score):
        raise ResultFileError(f"{where} (image {record.get('image_id')}) has score {score!r}, expected a finite number")
    box = record.get("bbox")
    if not box and masks and record.get("segmentation") is not None:
        return
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise ResultFileError(
            f"{where} (image {record.get('image_id')}) has bbox {box!r}, expected four finite numbers: "
            "x, y, width, height"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mask_areas(segmentations: list[Any], path: str | Path) -> np.ndarray:
    from pycocotools import mask as mask_api

    areas = np.zeros(len(segmentations))
    for i, segmentation in enumerate(segmentations):
        if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), (str, bytes)):
            raise ResultFileError(
                f"result file {path}: record {i} has no box and its mask is no compressed RLE (size and counts)"
            )
        areas[i] = mask_api.area(segmentation)
    return areas
