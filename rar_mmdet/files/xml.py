"""Boxes in the XML of Pascal VOC (one file a photo) and of CVAT (one file for all), as COCO dictionaries.

Formats: VOC's devkit and what LabelImg, Roboflow and others write in its name; "CVAT for images 1.1"
(https://docs.cvat.ai/docs/manual/advanced/xml_format/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from rar_mmdet.errors import AnnotationFileError

__all__ = ["VOC_SOURCE", "CocoBuilder", "read_cvat", "read_voc", "turned_box"]

# Files of the VOC challenge itself, and those written here, count pixels from 1 and include the last one; tools that
# copied the format do not. The element source/database tells.
VOC_SOURCE = "rar-mmdet label"
_OFFICIAL = ("The VOC", VOC_SOURCE)


class CocoBuilder:
    """A COCO dictionary that grows photo by photo; categories get ids in the order in which they are met."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}

    def add_photo(self, file_name: str, width: int, height: int) -> None:
        """The photo that the next boxes are of."""
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, "width": width, "height": height})

    def add_box(
        self,
        name: str,
        corners: Sequence[float],
        where: str,
        score: float | None = None,
        outline: Sequence[float] | None = None,
    ) -> None:
        """A box (x1, y1, x2, y2), in pixels, of the photo added last; and its outline x1, y1, x2, y2, ... if known.

        Raises:
            AnnotationFileError: it is no box.
        """
        x1, y1, x2, y2 = corners
        if not all(map(math.isfinite, corners)) or x2 < x1 or y2 < y1:
            raise AnnotationFileError(
                f"{where}: box {list(corners)} of {name!r} ends before it begins; expected x1, y1, x2, y2. Were x, y, "
                "width, height written?"
            )
        record: dict[str, Any] = {
            "id": len(self.annotations) + 1,
            "image_id": self.images[-1]["id"],
            "category_id": self._categories.setdefault(name, len(self._categories) + 1),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        if score is not None:
            record["score"] = score
        if outline is not None:
            record["segmentation"] = [list(outline)]
        self.annotations.append(record)

    def result(self) -> dict[str, Any]:
        """The dictionary."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def read_voc(place: str | Path) -> dict[str, Any]:
    """The boxes of a folder of VOC files, or of one of them.

    Files of the challenge itself (source/database "The VOC...") and of `rar-mmdet label` count from 1: one is
    subtracted from xmin and ymin. All others are taken as they are written.

    Raises:
        AnnotationFileError: there is none, or one is not of this format.
    """
    root = Path(place)
    files = [root] if root.is_file() else sorted(root.rglob("*.xml"))
    if not files:
        raise AnnotationFileError(f"{root} holds no .xml file; give the folder of Pascal VOC annotations")
    found = CocoBuilder()
    for file in files:
        tree = parse(file)
        if tree.tag != "annotation":
            raise AnnotationFileError(f"{file} begins with <{tree.tag}>, expected <annotation> as in Pascal VOC")
        shift = float((tree.findtext("source/database") or "").startswith(_OFFICIAL))
        width, height = (int(_number(tree, f"size/{key}", file, 0.0)) for key in ("width", "height"))
        photo = PurePosixPath(tree.findtext("folder") or "") / (tree.findtext("filename") or f"{file.stem}.jpg")
        found.add_photo(photo.as_posix(), width, height)
        for number, item in enumerate(tree.iter("object")):
            where = f"{file}, object {number}"
            left, top, right, bottom = (
                _number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            score = item.findtext("confidence") or item.findtext("score")
            found.add_box(
                item.findtext("name") or "",
                (left - shift, top - shift, right, bottom),
                where,
                None if score is None else float(score),
            )
    return found.result()


def read_cvat(file: str | Path) -> dict[str, Any]:
    """The boxes, and the polygons with the boxes around them, of a file "CVAT for images".

    Raises:
        AnnotationFileError: it is not of this format.
    """
    tree = parse(Path(file))
    if tree.tag != "annotations" or tree.find("image") is None:
        raise AnnotationFileError(
            f"{file} is not 'CVAT for images 1.1': expected <annotations> with an <image> for each photo (videos are "
            "exported in another form: choose 'CVAT for images')"
        )
    found = CocoBuilder()
    for image in tree.iter("image"):
        name = image.get("name") or ""
        found.add_photo(name, int(image.get("width") or 0), int(image.get("height") or 0))
        for shape in image:
            where, outline = f"{file}, image {name!r}, {shape.tag}", None
            if shape.tag == "box":
                corners = [_attribute(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr")]
                corners = turned_box(corners, float(shape.get("rotation") or 0.0))
            elif shape.tag == "polygon":
                points = [tuple(map(float, pair.split(","))) for pair in (shape.get("points") or "").split(";") if pair]
                if not points:
                    raise AnnotationFileError(f"{where} has no points")
                xs, ys = zip(*points, strict=True)
                corners = [min(xs), min(ys), max(xs), max(ys)]
                outline = [value for point in points for value in point] if len(points) > 2 else None
            else:
                continue  # tags, points, lines: nothing that is a box
            found.add_box(shape.get("label") or "", corners, where, outline=outline)
    return found.result()


def turned_box(corners: Sequence[float], degrees: float) -> list[float]:
    """The upright box around a box that was turned about its middle, clockwise."""
    if degrees == 0:
        return list(corners)
    x1, y1, x2, y2 = corners
    turn = math.radians(degrees)
    half_w, half_h = (x2 - x1) / 2, (y2 - y1) / 2
    reach_x = abs(half_w * math.cos(turn)) + abs(half_h * math.sin(turn))
    reach_y = abs(half_w * math.sin(turn)) + abs(half_h * math.cos(turn))
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    return [cx - reach_x, cy - reach_y, cx + reach_x, cy + reach_y]


def parse(file: Path) -> ElementTree.Element:
    """The root of an XML file, which may define no entities of its own.

    Raises:
        AnnotationFileError: it cannot be read or is no XML.
    """
    try:
        data = file.read_bytes()
        if b"<!ENTITY" in data:
            raise AnnotationFileError(f"{file} defines XML entities, which no annotation tool does; it is not read")
        return ElementTree.fromstring(data)
    except OSError as error:
        raise AnnotationFileError(f"{file} cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise AnnotationFileError(f"{file} is not complete XML: {error}") from error


def _number(item: ElementTree.Element, path: str, where: str | Path, default: float | None = None) -> float:
    text = item.findtext(path)
    if text is None and default is not None:
        return default
    return _as_number(text, path, where)


def _attribute(item: ElementTree.Element, key: str, where: str) -> float:
    return _as_number(item.get(key), key, where)


def _as_number(text: str | None, key: str, where: str | Path) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise AnnotationFileError(f"{where}: {key} is {text!r}, expected a number of pixels") from None
