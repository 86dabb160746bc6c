"""Boxes and names on a photo, with Pillow. The MMDetection visualizer is another face of the same wish."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rar_mmdet.files.images import read_image

__all__ = ["crop_address", "draw_regions", "label_place"]

_TEXT_SHARE = 1 / 40  # height of the letters by the photo's shorter side (ours: readable at full-screen size)
_SMALLEST_TEXT = 10  # pixels
_GOLDEN_RATIO = 0.618033988749895  # steps of the hue that keep neighbouring categories apart


def draw_regions(image: Any, boxes_xyxy: Tensor, labels: Sequence[str], category_ids: Sequence[int]) -> Image.Image:
    """Draw boxes and labels; the letters grow with the photo and labels stay inside it.

    Args:
        image: anything `read_image` takes.
        boxes_xyxy: (R, 4), original pixels.
        labels: R texts; underscores are shown as spaces.
        category_ids: R labels; equal ones have the same colour.

    Returns:
        A PIL image of the photo's size.
    """
    canvas = Image.fromarray(read_image(image))
    pen = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    font = ImageFont.load_default(max(_SMALLEST_TEXT, side * _TEXT_SHARE))
    width = max(1, round(side / 300))
    colours = [_colour(category) for category in category_ids]
    boxes = boxes_xyxy.tolist()
    for box, colour in zip(boxes, colours, strict=True):
        pen.rectangle(box, outline=colour, width=width)
    taken: list[tuple[float, float, float, float]] = []
    for box, label, colour in zip(boxes, labels, colours, strict=True):
        text = label.replace("_", " ")
        _, _, right, bottom = pen.textbbox((0, 0), text, font=font)
        taken.append(_free_place(box, (right + 2 * width, bottom + 2 * width), canvas.size, taken))
        pen.rectangle(taken[-1], fill=colour)
        pen.text((taken[-1][0] + width, taken[-1][1] + width), text, fill="black", font=font)
    return canvas


def crop_address(
    photo: NDArray[np.uint8], box_xyxy: Sequence[float], *, side: int, context: float = 0.25, quality: int = 80
) -> str:
    """A box and what is around it as a small JPEG in a `data:` address, for pages that hold their pictures.

    Args:
        photo: (H, W, 3) uint8 RGB.
        box_xyxy: pixels of the photo.
        side: longest side of the picture in pixels.
        context: how much is shown around the box, of its sides.
        quality: of the JPEG.
    """
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = box_xyxy
    dx, dy = context * (x2 - x1), context * (y2 - y1)
    left, top = int(min(max(x1 - dx, 0), width - 1)), int(min(max(y1 - dy, 0), height - 1))
    right, bottom = int(min(x2 + dx, width - 1)) + 1, int(min(y2 + dy, height - 1)) + 1
    picture = Image.fromarray(photo[top : max(bottom, top + 1), left : max(right, left + 1)])
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def label_place(
    corner_xy: tuple[float, float], label_wh: tuple[float, float], image_wh: tuple[int, int]
) -> tuple[float, float]:
    """Upper left corner of a label: above the box's corner, moved until it is inside the image."""
    (x, y), (width, height) = corner_xy, label_wh
    y = y - height if y - height >= 0 else y
    return max(0.0, min(x, image_wh[0] - width)), max(0.0, min(y, image_wh[1] - height))


def _free_place(
    box_xyxy: Sequence[float],
    label_wh: tuple[float, float],
    image_wh: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a label: above its box, below, at the right corners, or a line higher; the least hidden one."""
    x1, y1, x2, y2 = box_xyxy
    width, height = label_wh
    corners = ((x1, y1), (x1, y2 + height), (x2 - width, y1), (x2 - width, y2 + height), (x1, y1 - height))
    places = [label_place(corner, label_wh, image_wh) for corner in corners]
    areas = [(x, y, x + width, y + height) for x, y in places]
    return min(areas, key=lambda area: sum(_overlap(area, other) for other in taken))  # of equals the first


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Shared area of two rectangles x1, y1, x2, y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _colour(category: int) -> tuple[int, int, int]:
    """A bright colour of its own for each category; black letters can be read on it."""
    red, green, blue = colorsys.hsv_to_rgb((category * _GOLDEN_RATIO) % 1.0, 0.55, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
