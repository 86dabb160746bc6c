"""Boxes from the annotation file of any tool, found again by the file of a photo."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rar_mmdet.detectors.base import Detected
from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.coco import photo_path
from rar_mmdet.files.label_studio import read_label_studio
from rar_mmdet.files.xml import parse, read_cvat, read_voc
from rar_mmdet.files.yolo import NAME_FILES, read_yolo
from rar_mmdet.scoring.annotation_table import read_table
from rar_mmdet.scoring.box_checks import are_corners
from rar_mmdet.scoring.masks import FORMS, find_wrong_mask, mask_size

__all__ = ["BoxFile", "read_box_file"]


@dataclass(frozen=True)
class BoxFile:
    """Boxes of some photos, by the file of each."""

    where: str  # the file, for messages
    names: tuple[str, ...]
    photos: tuple[str, ...]  # as the file writes them
    sizes_hw: tuple[tuple[int, int], ...]  # of each photo; zeros where the file does not say
    boxes: tuple[Detected, ...]  # of each photo
    notes: tuple[str, ...] = ()  # what a person should know of the file: sentences
    _rows: dict[str, list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for row, photo in enumerate(self.photos):
            for key in _keys(photo):
                self._rows.setdefault(key, []).append(row)

    def row_of(self, path: str) -> int | None:
        """The row of a photo: the one whose path shares the longest end with `path`; None where there is none.

        Raises:
            AnnotationFileError: several photos of the file fit equally well.
        """
        for key in _keys(path):  # the whole path first, then shorter ends, at last the name without its suffix
            rows = self._rows.get(key, [])
            if len(rows) == 1:
                return rows[0]
            if rows:
                exact = [row for row in rows if PurePosixPath(self.photos[row]).parts == PurePosixPath(key).parts]
                if len(exact) == 1:
                    return exact[0]
                raise AnnotationFileError(
                    f"{self.where}: photo {path!r} may be any of {len(rows)} of its photos, such as "
                    f"{self.photos[rows[0]]!r} and {self.photos[rows[1]]!r}; give photos with their folders"
                )
        return None


def read_box_file(path: str | Path, split: str = "val") -> BoxFile:
    """Boxes from COCO (also LVIS, V3Det), YOLO, Pascal VOC, CVAT or Label Studio; which one is told by the content.

    Args:
        path: a JSON file (COCO, Label Studio), an XML file (CVAT, VOC), or a folder (YOLO: with data.yaml or
            classes.txt; VOC: of XML files).
        split: of a YOLO data set.

    Raises:
        AnnotationFileError: it is none of them, or holds boxes that are none: the message names the record. Boxes in
            0..1 where pixels are expected, and x, y, width, height where corners are, are told by their values.
    """
    place = Path(path)
    if not place.exists():
        raise AnnotationFileError(f"box file {place} does not exist (working directory: {Path.cwd()})")
    dataset, is_coco = _read(place, split)
    return _as_box_file(dataset, f"box file {place}", is_coco)


def _read(place: Path, split: str) -> tuple[dict[str, Any], bool]:
    """The content as a COCO dictionary, and whether it is one itself."""
    if place.is_dir():
        is_yolo = any((place / name).is_file() for name in NAME_FILES)
        return read_yolo(place, split) if is_yolo else read_voc(place), False
    if place.suffix.lower() == ".xml":
        return read_cvat(place) if parse(place).tag == "annotations" else read_voc(place), False
    try:
        content = json.loads(place.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise AnnotationFileError(
            f"box file {place} is no JSON: {error}. COCO and Label Studio files are JSON, VOC and CVAT files XML; of a "
            "YOLO data set give the folder"
        ) from error
    if isinstance(content, list):
        if content and isinstance(content[0], dict) and "bbox" in content[0]:
            raise AnnotationFileError(
                f"box file {place} is a COCO result file, which does not name its photos; put its records under "
                "'annotations' of a dictionary with the 'images' and 'categories' of the annotation file"
            )
        return read_label_studio(content, f"box file {place}"), False
    if not isinstance(content, dict):
        raise AnnotationFileError(f"box file {place} holds a {type(content).__name__}, expected COCO or Label Studio")
    return content, True


def _as_box_file(dataset: dict[str, Any], where: str, is_coco: bool) -> BoxFile:
    """Checks of values are those of scoring: the same records are refused with the same words."""
    dataset = dataset | {"annotations": [a for a in dataset.get("annotations") or () if not a.get("iscrowd")]}
    table = read_table(dataset, where, with_masks=False, need_area=False)
    scores = [annotation.get("score", 1.0) for annotation in dataset["annotations"]]
    wrong = [
        i for i, s in enumerate(scores) if isinstance(s, bool) or not isinstance(s, int | float) or not 0 <= s <= 1
    ]
    if wrong:
        raise AnnotationFileError(f"{where}: annotation {wrong[0]} has score {scores[wrong[0]]!r}, expected 0 to 1")
    segmentations = [annotation.get("segmentation") or None for annotation in dataset["annotations"]]
    wrong_mask = find_wrong_mask(segmentations)
    if wrong_mask is not None:
        raise AnnotationFileError(
            f"{where}: the segmentation of annotation {wrong_mask[0]} cannot be used: {wrong_mask[1]}; expected {FORMS}"
        )
    of_photo = table.image >= 0
    image_hw = np.where(of_photo[:, None], table.image_hw[table.image] if len(table.image_hw) else 0, 0)
    _check_masks_fit(segmentations, image_hw, where)
    if is_coco and are_corners(table.boxes_xywh[of_photo], image_hw[of_photo]):  # a turned box of others may leave too
        raise AnnotationFileError(
            f"{where}: its boxes, such as {table.boxes_xywh[of_photo][0].tolist()}, are x1, y1, x2, y2: so they fit "
            "into their photos, and as x, y, width, height, which COCO files have, they leave them. Write x2 - x1 for "
            "the width and y2 - y1 for the height"
        )
    corners = table.boxes_xywh.copy()
    corners[:, 2:] += corners[:, :2]
    by_image: dict[int, list[int]] = defaultdict(list)
    for row, (image, category) in enumerate(zip(table.image.tolist(), table.category.tolist(), strict=True)):
        if image >= 0 and category >= 0:
            by_image[image].append(row)
    boxes = []
    for image in range(len(table.image_ids)):
        rows = np.array(sorted(by_image[image], key=lambda row: -scores[row]), np.int64)  # stable
        own = torch.tensor([scores[row] for row in rows.tolist()], dtype=torch.float32)
        boxes.append(
            Detected(
                torch.from_numpy(corners[rows].astype(np.float32)).reshape(-1, 4),
                own,
                table.category_names,
                torch.arange(len(rows)),
                torch.from_numpy(table.category[rows]),
                own,
                segmentations=_of_rows(segmentations, rows.tolist()),
            )
        )
    return BoxFile(
        where=where,
        names=table.category_names,
        photos=tuple(photo_path(image, "").as_posix() for image in table.images.items),
        sizes_hw=tuple((int(h), int(w)) for h, w in table.image_hw.tolist()),
        boxes=tuple(boxes),
        notes=tuple(table.notes),
    )


def _check_masks_fit(segmentations: list[Any], image_hw: NDArray[np.int64], where: str) -> None:
    """Run lengths have a size of their own; polygons lie in the photo's."""
    for row, ((height, width), mask) in enumerate(zip(image_hw.tolist(), segmentations, strict=True)):
        size = None if mask is None else mask_size(mask)
        if size is not None and height and width and size != (height, width):
            raise AnnotationFileError(
                f"{where}: the mask of annotation {row} is {size[0]} x {size[1]}, its photo {height} x {width} "
                "(height x width); masks must have the size of their photo"
            )


def _of_rows(segmentations: list[Any], rows: list[int]) -> tuple[Any, ...] | None:
    own = tuple(segmentations[row] for row in rows)
    return own if any(one is not None for one in own) else None


def _keys(path: str) -> list[str]:
    """The path, its shorter and shorter ends, and its name without suffix."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return ["/".join(parts[start:]) for start in range(len(parts))] + [f"{PurePosixPath(parts[-1]).stem}."]
