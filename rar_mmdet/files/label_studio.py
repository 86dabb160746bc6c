"""Boxes in Label Studio's JSON export, as a COCO dictionary (https://labelstud.io/guide/export#Label-Studio-JSON-format).

Boxes stand there in percent of the photo: x, y, width, height, turned about their upper left corner.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.xml import CocoBuilder

__all__ = ["read_label_studio"]

SIDES = ("x", "y", "width", "height")  # of a rectangle
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # put before the names of uploaded photos


def read_label_studio(tasks: Any, where: str) -> dict[str, Any]:
    """The rectangles of some tasks; of a task with several annotations those of the last one that was not cancelled.

    Where people drew nothing, the predictions stand in, with their scores.

    Args:
        tasks: what the file holds.
        where: the file, for messages.

    Raises:
        AnnotationFileError: it is something else, or its rectangles are in pixels or in 0..1; Label Studio's JSON-MIN
            has no sizes and is refused too.
    """
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise AnnotationFileError(f"{where} is no list of Label Studio tasks; export as 'JSON', not as 'JSON-MIN'")
    found = CocoBuilder()
    percents: list[float] = []  # of all rectangles
    for number, task in enumerate(tasks):
        at = f"{where}, task {task.get('id', number)}"
        given = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
        source = (given or task.get("predictions") or [{}])[-1]
        shapes = [shape for shape in source.get("result") or () if shape.get("type") == "rectanglelabels"]
        sizes = {(int(s.get("original_width") or 0), int(s.get("original_height") or 0)) for s in shapes}
        if len(sizes) > 1 or (0, 0) in sizes:
            raise AnnotationFileError(
                f"{at}: original_width and original_height are {sorted(sizes)}, expected one size"
            )
        width, height = sizes.pop() if sizes else (0, 0)
        found.add_photo(_photo_of(task["data"], at), width, height)
        for shape in shapes:
            value = shape.get("value") or {}
            labels = value.get("rectanglelabels") or [""]
            found.add_box(labels[0], _corners(value, width, height, at), at, shape.get("score", source.get("score")))
            percents += [float(value[key]) for key in SIDES]
    if percents and max(percents) <= 1 and not all(map(float.is_integer, percents)):
        raise AnnotationFileError(
            f"{where}: all {len(percents) // 4} rectangles lie within 0 and 1; Label Studio's boxes are in percent: "
            "multiply x, y, width and height by 100"
        )
    return found.result()


def _corners(value: dict[str, Any], width: int, height: int, where: str) -> list[float]:
    """x1, y1, x2, y2 in pixels of the upright box around a rectangle in percent."""
    try:
        x, y, w, h = (float(value[key]) / 100 for key in SIDES)
    except (KeyError, TypeError, ValueError):
        raise AnnotationFileError(f"{where}: rectangle {value}, expected x, y, width, height in percent") from None
    if not all(-0.05 <= number <= 1.05 for number in (x, y, w, h)):
        raise AnnotationFileError(f"{where}: rectangle {value} is not in 0..100; Label Studio's boxes are in percent")
    turn = math.radians(float(value.get("rotation") or 0.0))
    if turn == 0 and max(x + w, y + h) > 1.05:  # its editor keeps what is not turned within the photo
        raise AnnotationFileError(
            f"{where}: rectangle {value} ends beyond the photo; expected x, y, width, height in percent. Were x1, y1, "
            "x2, y2 written?"
        )
    x, y, w, h = x * width, y * height, w * width, h * height
    across, down = (w * math.cos(turn), w * math.sin(turn)), (-h * math.sin(turn), h * math.cos(turn))
    xs = [x, x + across[0], x + down[0], x + across[0] + down[0]]
    ys = [y, y + across[1], y + down[1], y + across[1] + down[1]]
    return [min(xs), min(ys), max(xs), max(ys)]


def _photo_of(data: dict[str, Any], where: str) -> str:
    """The file of a task's photo: an upload, a local file or an address."""
    texts = [value for value in data.values() if isinstance(value, str) and Path(urlsplit(value).path).suffix]
    local = [parse_qs(urlsplit(v).query).get("d", [""])[0] for v in data.values() if isinstance(v, str)]
    local = [path for path in local if path]
    if local:
        return unquote(local[0])
    if not texts:
        raise AnnotationFileError(f"{where}: no photo among its data {sorted(data)}; expected the address of an image")
    path = unquote(urlsplit(texts[0]).path)
    folder, _, name = path.rpartition("/")
    return UPLOAD_PREFIX.sub("", name) if "/upload/" in f"{folder}/" else path.lstrip("/")
