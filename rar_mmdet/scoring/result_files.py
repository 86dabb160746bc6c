"""COCO result files, read and written a piece at a time.

A result file is one JSON list of `{"image_id", "category_id", "bbox": [x, y, w, h], "score"}` (with `"segmentation"`
for masks); LVIS and V3Det runs write gigabytes of it. Neither direction holds more than a few megabytes of objects.
gzip and any Unicode encoding are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from rar_mmdet.errors import ResultFileError
from rar_mmdet.scoring.annotations import Detections
from rar_mmdet.scoring.columns import BOX, Records
from rar_mmdet.scoring.identifiers import as_column
from rar_mmdet.scoring.json_files import JsonText
from rar_mmdet.scoring.masks import check_masks

__all__ = ["read_results", "write_results"]

CHUNK_CHARS = 1 << 19  # about 4,000 records: their dictionaries are what costs memory
LONGEST_RECORD = 1 << 24  # characters; a mask of that size would be a mistake
RECORD_BREAK = re.compile(r"\}\s*,\s*(?=\{)")
SPACE = re.compile(r"[\s,]*")
HINT = (
    "A result file is a JSON list of detections; MMDetection writes one as PREFIX.bbox.json with --cfg-options "
    "test_evaluator.0.outfile_prefix=PREFIX (test_evaluator.outfile_prefix where the config has one evaluator)"
)


def read_results(
    path: str | Path,
    *,
    keep_segmentations: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Detections:
    """Read a result file into arrays.

    Args:
        path: The file.
        keep_segmentations: Keep and check masks; their area is then the mask's where a record has no box.
        progress: Called with the number of characters read each time.

    Raises:
        ResultFileError: The file is truncated or not a list, or a record lacks a field or holds something that cannot
            be scored. The message counts records from 0.
    """
    images: list[np.ndarray] = []
    categories: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    segmentations: list[Any] = []
    count = 0
    for items in _read_records(Path(path), progress):
        records = Records(items, f"result file {path}", ResultFileError, ("image_id",), count)
        images.append(as_column(records.ids("image_id")))
        categories.append(as_column(records.ids("category_id")))
        scores.append(records.numbers("score"))
        boxes.append(records.boxes(optional=keep_segmentations))
        if keep_segmentations:
            segmentations.extend(_masks(records, boxes[-1]))
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
    with JsonText(path, "result file", ResultFileError, HINT) as file:
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


def _open_list(file: JsonText, path: Path) -> str:
    text = file.read(4096).lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        return text[1:]
    raise ResultFileError(f"result file {path} is not a JSON list of detections: it {_what_it_is(text)}. {HINT}")


def _what_it_is(text: str) -> str:
    """What the head of a file that is no list looks like."""
    if not text:
        return "is empty"
    if not text.startswith("{"):
        return f"begins with {text[:30]!r}"
    try:
        first, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        first = {}
    if "image_id" in first:
        return "holds one record after the other (JSON lines?); put [ and ] around them and commas between"
    if any(f'"{key}"' in text for key in ("images", "categories", "annotations", "licenses", "info")):
        return "looks like an annotation file; give the result file first, then the annotation file"
    return "is one JSON object; if the detections stand in it under some key, write that list alone"


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
        except (ValueError, RecursionError):
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
        except (ValueError, RecursionError) as error:
            if not final and len(text) - position < LONGEST_RECORD:  # the rest of it is still to be read
                return records, text[position:]
            raise ResultFileError(
                f"result file {path}: record {count + len(records)} is not complete JSON ({error}); "
                f"is the file truncated? It breaks near {text[position : position + 60]!r}"
            ) from None
        records.append(record)


def _masks(records: Records, boxes: np.ndarray) -> list[Any]:
    """The masks of some records, None where there is none and the box stands for it."""
    masks = [r.get("segmentation") for r in records.items]
    for i in np.flatnonzero(np.isnan(boxes[:, 0])).tolist():
        if masks[i] is None:
            records.refuse(i, "bbox", f"{BOX}, or a mask")
    check_masks(masks, lambda i, why: records.refuse(i, "segmentation", f"a mask that can be used: {why}"))
    return masks


def _mask_areas(segmentations: list[Any], path: str | Path) -> np.ndarray:
    areas = np.zeros(len(segmentations))
    for i, segmentation in enumerate(segmentations):
        if not isinstance(segmentation, dict) or isinstance(segmentation["counts"], list):
            raise ResultFileError(
                f"result file {path}: record {i} has no compressed RLE, and some record has no box. Where boxes are "
                "missing, every mask must be a compressed RLE (size and counts): areas are then the masks'"
            )
        areas[i] = mask_api.area(segmentation)
    return areas
