"""A tiny perfect world as an annotation file and a result file hold it, for tests that spoil it."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

HEIGHT, WIDTH = 100, 200


def perfect_world() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """3 photos of 200 x 100 with an object of each of 3 categories, LVIS style, and detections that find them all."""
    images = [
        {
            "id": i,
            "height": HEIGHT,
            "width": WIDTH,
            "file_name": f"{i}.jpg",
            "neg_category_ids": [1, 2, 3],
            "not_exhaustive_category_ids": [],
        }
        for i in (1, 2, 3)
    ]
    categories = [
        {"id": k, "name": name, "frequency": letter}
        for k, name, letter in ((1, "cat", "r"), (2, "dog", "c"), (3, "fish", "f"))
    ]
    annotations = []
    for image in images:
        for category in categories:
            x = 60.0 * category["id"] - 50
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category["id"],
                    "bbox": [x, 10.0, 40.0, 50.0],
                    "area": 2000.0,
                    "iscrowd": 0,
                    "segmentation": [[x, 10.0, x + 40, 10.0, x + 40, 60.0, x, 60.0]],
                }
            )
    keys = ("image_id", "category_id", "bbox")
    records = [{key: a[key] for key in keys} | {"score": 0.9 - 0.01 * n} for n, a in enumerate(annotations)]
    return {"images": images, "annotations": annotations, "categories": categories}, records


def run_lengths(box_xywh: list[float], height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """A rectangle as a compressed mask of the photo."""
    x, y, w, h = (int(v) for v in box_xywh)
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    encoded = mask_api.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": encoded["counts"].decode()}
