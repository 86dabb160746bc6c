"""Boxes and names on a photo, with Pillow. The MMDetection visualizer is another face of the same wish."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rar_mmdet.files.images import read_image

__all__ = ["draw_regions", "label_place"]

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
    for box, label, category in zip(boxes_xyxy.tolist(), labels, category_ids, strict=True):
        colour = _colour(category)
        pen.rectangle(box, outline=colour, width=width)
        text = label.replace("_", " ")
        _, _, right, bottom = pen.textbbox((0, 0), text, font=font)
        x, y = label_place((box[0], box[1]), (right + 2 * width, bottom + 2 * width), canvas.size)
        pen.rectangle([x, y, x + right + 2 * width, y + bottom + 2 * width], fill=colour)
        pen.text((x + width, y + width), text, fill="black", font=font)
    return canvas


def label_place(
    corner_xy: tuple[float, float], label_wh: tuple[float, float], image_wh: tuple[int, int]
) -> tuple[float, float]:
    """Upper left corner of a label: above the box's corner, moved until it is inside the image."""
    (x, y), (width, height) = corner_xy, label_wh
    y = y - height if y - height >= 0 else y
    return max(0.0, min(x, image_wh[0] - width)), max(0.0, min(y, image_wh[1] - height))


def _colour(category: int) -> tuple[int, int, int]:
    """A bright colour of its own for each category; black letters can be read on it."""
    red, green, blue = colorsys.hsv_to_rgb((category * _GOLDEN_RATIO) % 1.0, 0.55, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
