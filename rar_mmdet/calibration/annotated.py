"""The annotated boxes of some images, without those that are of no use."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import AnnotationFileError, MissingAssetError
from rar_mmdet.files.coco import box_of, is_object, photo_path, photo_size_hw
from rar_mmdet.files.images import check_size, photo_hw, read_image
from rar_mmdet.regions import find_invalid_boxes, find_suspicious_boxes

__all__ = ["AnnotatedRegions", "find_regions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedRegions:
    """R boxes of I images. Those of image i are rows starts[i] to starts[i + 1]."""

    files: tuple[Path, ...]  # I
    image_ids: tuple[Any, ...]  # I ids, as the annotation file has them
    image_hws: tuple[tuple[int, int], ...]  # I sizes in pixels
    starts: NDArray[np.int64]  # (I + 1,)
    boxes_xyxy: NDArray[np.float64]  # (R, 4) pixels of the upright photo
    annotations: tuple[Mapping[str, Any], ...]  # R records of the annotation file

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def rows(self, image: int) -> slice:
        """The rows of one image's boxes."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def photo(self, image: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of one image.

        Raises:
            ImageReadError: it cannot be read, or has another size than its annotations say.
        """
        photo = read_image(self.files[image])
        check_size(photo_hw(photo), self.image_hws[image], f"photo {self.files[image]}")
        return photo

    def parts(self, most: int) -> Iterator[tuple[range, slice]]:
        """Images and their rows, as many together as have at most so many boxes, but at least one."""
        first = 0
        while first < len(self.files):
            last = int(np.searchsorted(self.starts, self.starts[first] + most, side="right")) - 1
            last = min(max(last, first + 1), len(self.files))
            yield range(first, last), slice(int(self.starts[first]), int(self.starts[last]))
            first = last


def find_regions(annotations: Mapping[str, Any], root: Path, limit: int | None = None) -> AnnotatedRegions:
    """The boxes of one object each that can be cropped. How many others there are, and why, is logged.

    Args:
        annotations: a COCO, LVIS or V3Det annotation file.
        root: folder of the images.
        limit: only the first so many images.

    Raises:
        MissingAssetError: no box is left, or an image file is not there.
        AnnotationFileError: the file lacks a list, or an image has no id or no file name.
    """
    left_out: Counter[str] = Counter()
    objects_of = _objects_by_image(annotations, limit, left_out)
    _warn_of_odd_boxes(annotations, objects_of)
    files, image_ids, image_hws, boxes, records = [], [], [], [], []
    for image in annotations["images"][:limit]:
        own = objects_of[image["id"]]
        if not own:
            continue
        file = photo_path(image, root)
        if not file.is_file():
            raise MissingAssetError(f"{file} does not exist; give the folder of the images as --images")
        image_hw = photo_size_hw(image) or photo_hw(read_image(file))
        xyxy = np.array([box_of(record) for record in own], dtype=np.float64)
        bad = find_invalid_boxes(xyxy, image_hw)
        left_out.update(reason.split(":")[0].split(" of ")[0] for reason in bad.values())
        good = [row for row in range(len(own)) if row not in bad]
        if good:
            files.append(file)
            image_ids.append(image["id"])
            image_hws.append(image_hw)
            boxes.append(xyxy[good])
            records += [own[row] for row in good]
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        logger.warning("%d annotations are left out: %s", left_out.total(), reasons)
    if not files:
        raise MissingAssetError("the annotation file has no usable boxes; give one of training images as --annotations")
    starts = np.cumsum([0, *map(len, boxes)])
    return AnnotatedRegions(
        tuple(files), tuple(image_ids), tuple(image_hws), starts, np.concatenate(boxes), tuple(records)
    )


def _objects_by_image(annotations: Mapping[str, Any], limit: int | None, left_out: Counter[str]) -> dict[Any, list]:
    """Id of each image -> the annotations of its objects; counts what is none."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(annotations.get(key), list):
            raise AnnotationFileError(f"the annotation file has no list of {key!r} (it has {sorted(annotations)})")
    objects_of: dict[Any, list] = {}
    for row, image in enumerate(annotations["images"][:limit]):
        if not isinstance(image, Mapping) or image.get("id") is None:
            raise AnnotationFileError(f"images[{row}] = {str(image)[:80]} has no id; is this an annotation file?")
        objects_of[image["id"]] = []
    categories = {category["id"] for category in annotations["categories"]}
    for annotation in annotations["annotations"]:
        own = objects_of.get(annotation.get("image_id"))
        if own is None:  # of an image beyond the limit
            continue
        if not is_object(annotation):
            left_out["of a crowd or to be ignored"] += 1
        elif box_of(annotation) is None:
            left_out["without a box of four numbers and an area"] += 1
        elif annotation.get("category_id") not in categories:
            left_out["of a category that the file does not have"] += 1
        else:
            own.append(annotation)
    return objects_of


def _warn_of_odd_boxes(annotations: Mapping[str, Any], objects_of: Mapping[Any, list]) -> None:
    """Say when the boxes of the whole file look wrong, such as x1, y1, x2, y2 where x, y, width, height is expected."""
    sizes = {image["id"]: photo_size_hw(image) for image in annotations["images"] if image.get("id") in objects_of}
    known = [(objects_of[i], hw) for i, hw in sizes.items() if hw is not None and objects_of[i]]
    boxes = [[record["bbox"] for record in own] for own, _ in known]
    if known:
        for sentence in find_suspicious_boxes(boxes, [hw for _, hw in known], "xywh"):
            logger.warning("%s", sentence)
