"""The columns of a COCO-style annotation dictionary, each checked: what is odd is refused by name or noted.

What the reference APIs pass over in silence (annotations of unknown images or categories, repeated ids) they pass over
here too, so that numbers agree; but it is counted and said in `notes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.scoring.box_checks import are_fractions, first_negative, note_on_boxes
from rar_mmdet.scoring.columns import Records
from rar_mmdet.scoring.identifiers import differ_in_type_only, rows_of, some_of, sorted_ids
from rar_mmdet.scoring.masks import LEAST_NUMBERS, check_masks, mask_size

__all__ = ["AnnotationTable", "read_table"]

FREQUENCIES = ("r", "c", "f")  # LVIS: categories seen in < 10, 10-99, >= 100 training images
NOT_LVIS = "Is this a COCO-style file? Then score it with the coco protocol"
SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class AnnotationTable:
    """I images, K categories and A annotations of a file; images and categories in rising order of their ids."""

    image_ids: NDArray[Any]  # (I,)
    image_hw: NDArray[np.int64]  # (I, 2) height, width; 0 where the file does not say
    images: Records  # I
    category_ids: NDArray[Any]  # (K,)
    category_names: tuple[str, ...]  # K
    categories: Records  # K
    ids: list[Any]  # A
    image: NDArray[np.int64]  # (A,) row of the image, -1 where the file has none
    category: NDArray[np.int64]  # (A,) row of the category, -1 likewise
    boxes_xywh: NDArray[np.float64]  # (A, 4) pixels; NaN where a mask needs none
    area: NDArray[np.float64]  # (A,)
    crowd: NDArray[np.bool_]  # (A,)
    ignore: NDArray[np.bool_]  # (A,)
    segmentations: list[Any] | None  # A, checked
    notes: list[str] = field(default_factory=list)  # what a person should know of the file

    def frequencies(self) -> tuple[str, ...]:
        """K of "r", "c", "f".

        Raises:
            AnnotationFileError: A category has none.
        """
        for i, category in enumerate(self.categories.items):
            if category.get("frequency") not in FREQUENCIES:
                self.categories.refuse(i, "frequency", f"'r', 'c' or 'f' as LVIS files have. {NOT_LVIS}")
        return tuple(c["frequency"] for c in self.categories.items)

    def novel(self) -> NDArray[np.bool_] | None:
        """(K,) whether each category is a novel one, as V3Det's files say for open-vocabulary detection; None: unsaid.

        Raises:
            AnnotationFileError: A value is neither true nor false, or only some categories have one.
        """
        said = ["novel" in category for category in self.categories.items]
        if not any(said):
            return None
        if not all(said):
            self.categories.refuse(said.index(False), "novel", "true or false, as the other categories have")
        return self.categories.flags("novel")

    def listed_categories(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the images and of the categories that a list field of each image names, such as `neg_category_ids`.

        Raises:
            AnnotationFileError: An image lacks the list, or it holds what is no category id.
        """
        expected = f"a list of category ids, as every image of an LVIS file has. {NOT_LVIS}"
        lists = [image.get(key) for image in self.images.items]
        for i, ids in enumerate(lists):
            if not isinstance(ids, list) or any(type(v) not in (int, str) for v in ids):
                self.images.refuse(i, key, expected)
        named = [v for ids in lists for v in ids]
        image = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
        category = rows_of(named, self.category_ids)
        unknown = np.flatnonzero(category < 0)
        if len(unknown):
            twin = differ_in_type_only([named[i] for i in unknown], self.category_ids.tolist())
            if twin is not None:
                self.images.refuse(
                    int(image[named.index(twin[0])]), key, f"ids as the categories have them: {twin[1]!r}"
                )
            self.notes.append(
                f"{self.images.where}: {len(unknown)} entries of {key} are no category of the file (such as "
                f"{some_of(named[i] for i in unknown)}) and are passed over"
            )
        known = category >= 0
        return image[known], category[known]


def read_table(dataset: Any, where: str, *, with_masks: bool, need_area: bool) -> AnnotationTable:
    """Check an annotation dictionary and take it apart.

    Args:
        dataset: What the file holds.
        where: The file, for messages: "annotation file val.json".
        with_masks: Keep and check the masks; boxes may then be missing.
        need_area: Refuse annotations without `area`; else it is the box's.

    Raises:
        AnnotationFileError: A record lacks a field or holds something that cannot be scored; the message names it.
    """
    notes: list[str] = []
    image_ids, images = _distinct(_section(dataset, "images", where), notes)
    category_ids, categories = _distinct(_section(dataset, "categories", where), notes)
    image_hw = np.stack([images.lengths("height"), images.lengths("width")], axis=1).astype(np.int64).reshape(-1, 2)
    annotations = _section(dataset, "annotations", where)
    ids = annotations.ids("id")
    _note_repeated(ids, annotations, "objects are lost; give every annotation its own id", notes)
    if 0 in ids:
        notes.append(
            f"{annotations.name(ids.index(0))}: the id 0 counts as never found, as in pycocotools and lvis-api; "
            "number annotations from 1"
        )
    image = _rows(annotations, "image_id", image_ids, notes)
    category = _rows(annotations, "category_id", category_ids, notes)
    boxes = annotations.boxes(optional=with_masks)
    known_hw = np.where((image >= 0)[:, None], image_hw[image] if len(image_hw) else 0, 0)
    _check_boxes(annotations, boxes, known_hw, notes)
    box_area = None if need_area else boxes[:, 2] * boxes[:, 3]
    masks = _masks(annotations, image, known_hw, notes) if with_masks else None
    return AnnotationTable(
        image_ids=image_ids,
        image_hw=image_hw,
        images=images,
        category_ids=category_ids,
        category_names=tuple(str(c.get("name", c["id"])) for c in categories.items),
        categories=categories,
        ids=ids,
        image=image,
        category=category,
        boxes_xywh=boxes,
        area=_areas(annotations, box_area),
        crowd=annotations.flags("iscrowd"),
        ignore=annotations.flags("ignore"),
        segmentations=masks,
        notes=notes,
    )


def _section(dataset: Any, key: str, where: str) -> Records:
    if not isinstance(dataset, Mapping):
        raise AnnotationFileError(
            f"{where} holds a {type(dataset).__name__}, expected a dictionary with images, annotations and "
            "categories; were the result file and the annotation file swapped?"
        )
    section = dataset.get(key)
    if section is None and key == "annotations":
        section = []
    if not isinstance(section, list):
        found = f"is a {type(section).__name__}" if key in dataset else "is missing"
        raise AnnotationFileError(
            f"{where} has no list of {key!r} (it {found}; the file has {some_of(dataset)}): expected a dictionary with "
            f"the lists {', '.join(SECTIONS)}, as COCO and LVIS files are"
        )
    names = {"images": ("id", "file_name"), "annotations": ("id", "image_id"), "categories": ("id", "name")}[key]
    return Records(section, f"{where}, {key}", AnnotationFileError, names)


def _distinct(records: Records, notes: list[str]) -> tuple[NDArray[Any], Records]:
    """Sorted ids and their records; of several with one id the last, as in the reference APIs."""
    ids = records.ids("id")
    by_id = dict(zip(ids, records.items, strict=True))
    if len(by_id) < len(ids):
        for i, record in enumerate(records.items):
            if record.get("name") != by_id[ids[i]].get("name"):
                records.refuse(i, "id", f"an id of its own: {by_id[ids[i]].get('name')!r} has the same")
        _note_repeated(ids, records, "write each once", notes)
    try:
        order = sorted_ids(by_id)
    except TypeError:
        text = next(i for i in ids if isinstance(i, str))
        number = next(i for i in ids if not isinstance(i, str))
        raise records.error(f"{records.where}: ids mix text and numbers ({text!r}, {number!r}); use one kind") from None
    return order, Records([by_id[i] for i in order.tolist()], records.where, records.error, records.keys)


def _note_repeated(ids: Sequence[Any], records: Records, advice: str, notes: list[str]) -> None:
    if len(set(ids)) < len(ids):
        repeated = [i for i, count in Counter(ids).items() if count > 1]
        notes.append(
            f"{records.where}: {len(repeated)} ids occur more than once, such as {some_of(repeated)}. The last record "
            f"of each stands for all, as in pycocotools and lvis-api: {advice}"
        )


def _rows(annotations: Records, key: str, ids: NDArray[Any], notes: list[str]) -> NDArray[np.int64]:
    """Row of the image or category of each annotation."""
    values = annotations.ids(key)
    rows = rows_of(values, ids)
    unknown = np.flatnonzero(rows < 0)
    if not len(unknown):
        return rows
    kind = {"image_id": "image", "category_id": "category"}[key]
    twin = differ_in_type_only([values[i] for i in unknown], ids.tolist())
    if twin is not None:
        annotations.refuse(values.index(twin[0]), key, f"an id as the records of each {kind} have it: {twin[1]!r}")
    said = (
        f"{len(unknown)} of {len(values)} annotations have {key} {some_of(values[i] for i in unknown)}, and the file "
        f"has no such {kind} (of its {len(ids)}: {some_of(ids.tolist())})"
    )
    if len(unknown) == len(values):
        raise annotations.error(f"{annotations.where}: {said}. Nothing can be scored")
    notes.append(f"{annotations.where}: {said}: they are left out, as in pycocotools and lvis-api")
    return rows


def _check_boxes(
    annotations: Records, boxes: NDArray[np.float64], image_hw: NDArray[np.int64], notes: list[str]
) -> None:
    row = first_negative(boxes)
    if row is not None:
        annotations.refuse(row, "bbox", "x, y, width, height with a size from 0 on. Were x1, y1, x2, y2 written?")
    given = boxes[np.isfinite(boxes).all(axis=1)]
    if are_fractions(given):
        annotations.refuse(
            int(np.argmax(np.isfinite(boxes[:, 0]))),
            "bbox",
            f"pixels. All {len(given)} boxes lie within 0 and 1: multiply x and width by the width of the image, y and "
            "height by its height",
        )
    note = note_on_boxes(boxes, image_hw, f"annotations ({annotations.where})")
    if note is not None:
        notes.append(note)


def _areas(annotations: Records, box_area: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Areas in square pixels; `box_area`, where given, stands for those that are missing."""
    if box_area is None:
        area = annotations.numbers("area")
    else:
        area = annotations.numbers("area", default=-1.0)
        area = np.where(area < 0, box_area, area)
    if (area < 0).any():
        annotations.refuse(int(np.argmax(area < 0)), "area", "square pixels from 0 on")
    return area


def _masks(annotations: Records, image: NDArray[np.int64], image_hw: NDArray[np.int64], notes: list[str]) -> list[Any]:
    """The segmentations, checked."""
    masks = [a.get("segmentation") for a in annotations.items]
    for i, mask in enumerate(masks):
        if mask is None:
            annotations.refuse(i, "segmentation", "a mask; without masks score with metric bbox")
    check_masks(masks, lambda i, why: annotations.refuse(i, "segmentation", f"a mask that can be used: {why}"))
    unsized = np.flatnonzero((image >= 0) & (image_hw == 0).any(axis=1))
    for i in unsized.tolist():
        if isinstance(masks[i], list):
            annotations.refuse(i, "segmentation", "height and width of its image, which polygons are drawn into")
    thin = [i for i, m in enumerate(masks) if isinstance(m, list) and any(len(part) < LEAST_NUMBERS for part in m)]
    if thin:
        notes.append(
            f"{annotations.name(thin[0])}: polygons of fewer than three points cover nothing and are left out "
            f"({len(thin)} annotations have some)"
        )
    for i, mask in enumerate(masks):
        size = mask_size(mask)
        if size is not None and image_hw[i].all() and size != tuple(image_hw[i].tolist()):
            height, width = image_hw[i].tolist()
            notes.append(
                f"{annotations.name(i)}: its mask is {size[0]} x {size[1]}, its image {height} x {width} (height x "
                "width); masks of detections must have the same size as those of the annotations"
            )
            break
    return masks
