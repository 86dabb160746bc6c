"""One record of a COCO-style annotation file (COCO, LVIS, V3Det): what is an object, where it is, and in which photo.

Files are made by many tools: fields are missing or null, numbers are text, boxes have no area. What cannot be used
gives `None` here, for the caller to count and say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from rar_mmdet.errors import AnnotationFileError

__all__ = ["box_of", "is_object", "path_in_url", "photo_path", "photo_size_hw"]


def box_of(annotation: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 of an annotation's `bbox` (x, y, width, height); `None` unless finite and with an area."""
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return None
    x, y, width, height = map(float, bbox)
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def is_object(annotation: Mapping[str, Any]) -> bool:
    """Whether it is one object, rather than a crowd or a region to be ignored."""
    return not annotation.get("iscrowd") and not annotation.get("ignore")


def photo_size_hw(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of an image's record; `None` where it does not say."""
    sides = [image.get("height"), image.get("width")]
    height, width = (int(side) if _is_number(side) else 0 for side in sides)
    return (height, width) if height > 0 and width > 0 else None


def photo_path(image: Mapping[str, Any], root: str | Path) -> Path:
    """Where an image's file is: `file_name`, or the last two parts of `coco_url` (LVIS's val set mixes two folders).

    Raises:
        AnnotationFileError: the record has neither.
    """
    name = image.get("file_name") or path_in_url(str(image.get("coco_url") or ""))
    if not isinstance(name, str) or not name:
        raise AnnotationFileError(f"image {image.get('id')!r} has no file_name and no coco_url, so there is no file")
    return Path(root) / name


def path_in_url(coco_url: str) -> str:
    """Folder and file that the address of a photo ends in, such as `val2017/000000397133.jpg`, on any host.

    A path without a host is returned as it is.
    """
    address = urlsplit(coco_url)
    return "/".join(address.path.split("/")[-2:]) if address.netloc else coco_url


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
