"""Part of a test set, such as LVIS minival: a list of image ids, or the annotation file of that part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.scoring.annotations import Detections
from rar_mmdet.scoring.identifiers import differ_in_type_only, some_of
from rar_mmdet.scoring.json_files import JsonText

__all__ = ["check_known_images", "of_images", "read_image_ids"]

EXPECTED = (
    "expected image ids: a JSON list of them, a text file with one a line, or an annotation file (its images are taken)"
)


def read_image_ids(path: str | Path) -> list[Any]:
    """The ids that a list of images names, in its order.

    Args:
        path: A JSON list of ids, a text file with one id a line (lines that are numbers are numbers; empty lines and
            those that begin with # are passed over), or a COCO-style annotation file, of which the images are taken.

    Raises:
        AnnotationFileError: There is no such file, it holds something else, or no id at all.
    """
    name = f"image list {path}"
    with JsonText(path, "image list", AnnotationFileError, EXPECTED) as file:
        text = file.read().strip()
    if text.startswith(("[", "{")):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise AnnotationFileError(f"{name} is not complete JSON ({error}); {EXPECTED}") from None
        if isinstance(found, dict):
            found = found.get("images")
        ids = [item.get("id") if isinstance(item, dict) else item for item in found or ()]
    else:
        lines = [line.strip() for line in text.splitlines()]
        ids = [int(line) if line.isdecimal() else line for line in lines if line and not line.startswith("#")]
    wrong = [value for value in ids if type(value) not in (int, str)]
    if wrong or not ids:
        raise AnnotationFileError(f"{name} holds {repr(wrong[0]) if wrong else 'no id'}; {EXPECTED}")
    return list(dict.fromkeys(ids))


def check_known_images(wanted: Iterable[Any], known: Iterable[Any], where: str) -> None:
    """Every image of a list must be in the annotations.

    Raises:
        AnnotationFileError: One is not; an image that is passed over in silence would change what is scored.
    """
    wanted, present = list(wanted), set(known)
    unknown = [value for value in wanted if value not in present]
    if not unknown:
        return
    twin = differ_in_type_only(unknown, present)
    advice = f"; the annotations have {twin[1]!r}: write ids as they do" if twin else ". Is the list of another split?"
    raise AnnotationFileError(
        f"{len(unknown)} of the {len(wanted)} images of the list are not in {where}, such as {some_of(unknown)}{advice}"
    )


def of_images(detections: Detections, image_ids: Iterable[Any]) -> Detections:
    """The detections of some images, in their order."""
    wanted = set(image_ids)
    return detections.take(np.array([value in wanted for value in detections.image_ids.tolist()], bool))
