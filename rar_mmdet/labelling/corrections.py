"""What a person said of labels: the file that the review page saves, or annotated boxes of any tool."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.detectors import BoxFile
from rar_mmdet.errors import RecordFileError
from rar_mmdet.files.names import cleaned
from rar_mmdet.labelling.words import NEVER_WRITTEN, WordList
from rar_mmdet.records import RegionRecord
from rar_mmdet.scoring.recognition import match_truth

__all__ = ["Corrections", "corrections_of_boxes", "is_corrections", "read_corrections", "write_corrections"]

Corrections = dict[tuple[str, int], int | None]  # (photo, region) -> class, `None` for none


def is_corrections(file: Path) -> bool:
    """Whether a file is what the review page saves, and not one of annotated boxes."""
    if not file.is_file() or file.suffix.lower() != ".json":
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True  # whoever reads it says what is wrong
    return not isinstance(content, dict) or ("annotations" not in content and "images" not in content)


def read_corrections(file: Path, words: WordList) -> Corrections:
    """What a review page saved.

    Raises:
        RecordFileError: it is no such file, or names a class that the words do not have.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        choices = [(str(c["photo"]), int(c["region"]), c["class"]) for c in content["corrections"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordFileError(f"corrections {str(file)!r} are no file that the review page saved: {error!r}") from error
    rows = {name: row for row, name in enumerate(words.classes)}
    unknown = sorted({str(name) for _, _, name in choices if name is not None and name not in rows})
    if unknown:
        raise RecordFileError(
            f"corrections {str(file)!r} name {unknown[0]!r}, which is not among the words; were they made with others?"
        )
    return {(photo, region): None if name is None else rows[name] for photo, region, name in choices}


def write_corrections(file: Path, corrections: Mapping[tuple[str, int], int | None], words: WordList) -> None:
    """Write what `read_corrections` reads; the file is moved into its place when it is whole."""
    told = [
        {"photo": photo, "region": region, "class": None if row is None else words.classes[row]}
        for (photo, region), row in corrections.items()
    ]
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps({"corrections": told}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)


def corrections_of_boxes(
    truth: BoxFile, words: WordList, photos: Iterator[tuple[Any, Sequence[RegionRecord]]]
) -> tuple[Corrections, list[str]]:
    """What annotated boxes say of regions: the class of the box that overlaps one by half or more, else none.

    Args:
        truth: the annotated boxes; photos that it does not have are passed over.
        words: names of boxes are classes or phrases of it; others are none of the words.
        photos: the photos (with `name`) and their records.

    Returns:
        the corrections, and names of boxes that the words do not have.
    """
    rows = {cleaned(phrase).casefold(): row for phrase, row in zip(words.phrases, words.class_of, strict=True)}
    rows |= {cleaned(name).casefold(): row for row, name in enumerate(words.classes)}
    row_of = np.array([rows.get(cleaned(name).casefold(), NEVER_WRITTEN) for name in truth.names] + [NEVER_WRITTEN])
    unknown = [name for name in truth.names if cleaned(name).casefold() not in rows]
    found: Corrections = {}
    for state, records in photos:
        place = truth.row_of(state.name)
        if place is None:
            continue
        boxes = truth.boxes[place]
        labels = match_truth(
            np.array([record.box_xyxy for record in records], float), boxes.boxes_xyxy.numpy(), boxes.label_ids.numpy()
        )
        for record, label in zip(records, labels.tolist(), strict=True):
            row = int(row_of[label])
            found[state.name, record.region] = None if row == NEVER_WRITTEN else row
    if not found:
        raise RecordFileError(
            f"{truth.where} has none of the photos of this run (it has {len(truth.photos)}, such as "
            f"{truth.photos[0] if truth.photos else 'none'})"
        )
    return found, unknown
