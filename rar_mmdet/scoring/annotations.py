"""Detections and annotations as flat arrays: what every protocol of this folder scores.

Shapes: I images, K categories, G annotations, M detections. Boxes are `xywh` float64 in original pixels, as the COCO
and LVIS files hold them. An image or category is named by its row (`image`, `category`) in the sorted id lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import AnnotationFileError

__all__ = ["Detections", "GroundTruth", "load_annotation_file", "rows_of"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FREQUENCIES = ("r", "c", "f")  # LVIS: categories seen in < 10, 10-99, >= 100 training images


@dataclass(frozen=True)
class Detections:
    """M scored boxes of a whole test set, in the order they were written."""

    image_ids: NDArray[Any]  # (M,) ids as in the annotation file
    category_ids: NDArray[Any]  # (M,) ids as in the annotation file
    boxes_xywh: FloatArray  # (M, 4)
    scores: FloatArray  # (M,) finite
    segmentations: list[Any] | None = None  # M COCO segmentations (RLE or polygons)
    areas: FloatArray | None = None  # (M,) square pixels; None: width times height of the box

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: NDArray[Any]) -> Detections:
        """The detections of the given rows (indices or a boolean mask), in that order."""
        segmentations = None
        if self.segmentations is not None:
            indices = np.flatnonzero(rows) if rows.dtype == bool else rows
            segmentations = [self.segmentations[i] for i in indices]
        return Detections(
            self.image_ids[rows],
            self.category_ids[rows],
            self.boxes_xywh[rows],
            self.scores[rows],
            segmentations,
            None if self.areas is None else self.areas[rows],
        )

    @property
    def area(self) -> FloatArray:
        """(M,) area in square pixels; negative where one side is."""
        return self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3] if self.areas is None else self.areas

    @staticmethod
    def empty() -> Detections:
        """No detection at all."""
        none = np.zeros(0, np.int64)
        return Detections(none, none, np.zeros((0, 4)), np.zeros(0))


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a test set, ordered by image and, within an image, as in the file."""

    image_ids: NDArray[Any]  # (I,) sorted
    image_hw: IntArray  # (I, 2) height, width in pixels; zeros where the file does not say
    category_ids: NDArray[Any]  # (K,) sorted
    category_names: tuple[str, ...]  # K names, in the order of category_ids
    frequencies: tuple[str, ...] | None  # K of "r", "c", "f" (LVIS), or None
    image: IntArray  # (G,) row in image_ids
    category: IntArray  # (G,) row in category_ids
    boxes_xywh: FloatArray  # (G, 4)
    area: FloatArray  # (G,) as written in the file: mask area for COCO and LVIS
    crowd: BoolArray  # (G,) may be matched more than once, IoU over the detection's area
    ignore: BoolArray  # (G,) neither to be found nor counted against a detection
    counts: BoolArray  # (G,) False for the id 0, whose match the reference implementations take for none
    negatives: IntArray  # sorted pair keys of categories verified absent (LVIS)
    not_exhaustive: IntArray  # sorted pair keys of categories annotated in part (LVIS)
    segmentations: tuple[Any, ...] | None = None  # G COCO segmentations, kept on request

    def __len__(self) -> int:
        return len(self.area)

    @property
    def num_images(self) -> int:
        """I, images that are scored."""
        return len(self.image_ids)

    @property
    def num_categories(self) -> int:
        """K, categories that are scored."""
        return len(self.category_ids)

    def pair_keys(self, image: IntArray, category: IntArray) -> IntArray:
        """One integer per (image row, category row)."""
        return image * self.num_categories + category

    def with_rows(self, image: IntArray, category: IntArray, source: IntArray) -> GroundTruth:
        """Append copies of annotations `source` as ignored annotations of other (image, category) pairs."""
        segmentations = self.segmentations
        if segmentations is not None:
            segmentations = segmentations + tuple(segmentations[i] for i in source)
        return replace(
            self,
            image=np.concatenate([self.image, image]),
            category=np.concatenate([self.category, category]),
            boxes_xywh=np.concatenate([self.boxes_xywh, self.boxes_xywh[source]]),
            area=np.concatenate([self.area, self.area[source]]),
            crowd=np.concatenate([self.crowd, self.crowd[source]]),
            ignore=np.concatenate([self.ignore, np.ones(len(source), bool)]),
            counts=np.concatenate([self.counts, self.counts[source]]),
            segmentations=segmentations,
        )

    def without_categories(self) -> GroundTruth:
        """Every annotation in one class, for class-agnostic recall."""
        order = np.lexsort((self.category, self.image))
        segmentations = None if self.segmentations is None else tuple(self.segmentations[i] for i in order)
        return replace(
            self,
            category_ids=np.zeros(1, np.int64),
            category_names=("object",),
            frequencies=None,
            image=self.image[order],
            category=np.zeros(len(order), np.int64),
            boxes_xywh=self.boxes_xywh[order],
            area=self.area[order],
            crowd=self.crowd[order],
            ignore=self.ignore[order],
            counts=self.counts[order],
            negatives=np.zeros(0, np.int64),
            not_exhaustive=np.zeros(0, np.int64),
            segmentations=segmentations,
        )

    @staticmethod
    def from_dataset(
        dataset: Mapping[str, Any],
        *,
        federated: bool,
        image_ids: Iterable[Hashable] | None = None,
        category_ids: Iterable[Hashable] | None = None,
        keep_segmentations: bool = False,
    ) -> GroundTruth:
        """Arrays from a COCO-style (or, if `federated`, LVIS-style) annotation dictionary.

        Args:
            dataset: Dictionary with `images`, `annotations` and `categories`.
            federated: LVIS rules: `neg_category_ids` and `not_exhaustive_category_ids` of the images and `frequency`
                of the categories are read, annotations without area are dropped and none is a crowd
                (lvis-api 0.5.3, `LVIS.get_ann_ids` and `LVISEval._prepare`).
            image_ids: Score only these images; all by default.
            category_ids: Score only these categories; all by default.
            keep_segmentations: Keep the masks; needed for segm scoring only.

        Raises:
            AnnotationFileError: The dictionary lacks a key the protocol needs.
        """
        images = {record["id"]: record for record in _section(dataset, "images")}
        categories = {record["id"]: record for record in _section(dataset, "categories")}
        if image_ids is not None:
            images = {i: images[i] for i in image_ids if i in images}
        if category_ids is not None:
            wanted = set(category_ids)
            categories = {i: c for i, c in categories.items() if i in wanted}
        image_order, category_order = _sorted_ids(images, "images"), _sorted_ids(categories, "categories")
        annotations = _select_annotations(dataset.get("annotations", ()), images, categories, federated)
        image = rows_of([a["image_id"] for a in annotations], image_order)
        order = np.argsort(image, kind="stable")
        annotations = [annotations[i] for i in order]
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
        ignore = np.array([bool(a.get("ignore", 0)) for a in annotations], bool) if federated else crowd
        in_order = [categories[i] for i in category_order.tolist()]
        return GroundTruth(
            image_ids=image_order,
            image_hw=_image_sizes(images, image_order),
            category_ids=category_order,
            category_names=tuple(str(c.get("name", c["id"])) for c in in_order),
            frequencies=_frequencies(in_order) if federated else None,
            image=image[order],
            category=rows_of([a["category_id"] for a in annotations], category_order),
            boxes_xywh=_field(annotations, "bbox", (4,)),
            area=_field(annotations, "area", ()),
            crowd=np.zeros(len(annotations), bool) if federated else crowd,
            ignore=ignore,
            counts=np.array([a["id"] != 0 for a in annotations], bool),
            negatives=_image_lists(images, image_order, category_order, "neg_category_ids", federated),
            not_exhaustive=_image_lists(images, image_order, category_order, "not_exhaustive_category_ids", federated),
            segmentations=tuple(a.get("segmentation") for a in annotations) if keep_segmentations else None,
        )


def load_annotation_file(path: str | Path, *, keep_segmentations: bool = False) -> dict[str, Any]:
    """Read an annotation file, dropping masks while parsing unless they are asked for.

    Raises:
        AnnotationFileError: The file is missing, truncated, not JSON or not an annotation dictionary.
    """

    def drop_masks(record: dict[str, Any]) -> dict[str, Any]:
        record.pop("segmentation", None)
        return record

    hook: Callable[[dict[str, Any]], dict[str, Any]] | None = None if keep_segmentations else drop_masks
    try:
        with open(path, encoding="utf-8") as file:
            dataset = json.load(file, object_hook=hook)
    except FileNotFoundError:
        raise AnnotationFileError(f"annotation file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationFileError(f"annotation file {path} is not complete JSON ({error}); download it again") from None
    if not isinstance(dataset, dict):
        raise AnnotationFileError(
            f"annotation file {path} holds a {type(dataset).__name__}, expected a dictionary with "
            "images, annotations and categories; were the result file and the annotation file swapped?"
        )
    return dataset


def rows_of(values: Sequence[Any] | NDArray[Any], ids: NDArray[Any]) -> IntArray:
    """Row of each value in `ids` (distinct, sorted if integers), -1 where it is absent."""
    numbers = _as_integers(values)
    if numbers is None or ids.dtype.kind not in "iu":
        table = {value: row for row, value in enumerate(ids.tolist())}
        return np.array(
            [table.get(v, -1) for v in (values.tolist() if isinstance(values, np.ndarray) else values)], int
        )
    if len(ids) == 0:
        return np.full(len(numbers), -1, np.int64)
    rows = np.minimum(np.searchsorted(ids, numbers), len(ids) - 1)
    return np.where(ids[rows] == numbers, rows, -1)


def _as_integers(values: Sequence[Any] | NDArray[Any]) -> IntArray | None:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    return np.array(values, np.int64) if all(type(v) is int for v in values) else None


def _section(dataset: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    section = dataset.get(key)
    if not isinstance(section, list):
        raise AnnotationFileError(f"the annotation file has no list of {key!r} (it has {sorted(dataset)})")
    return section


def _sorted_ids(records: Mapping[Hashable, Any], what: str) -> NDArray[Any]:
    ids: list[Any] = list(records)
    try:
        ids.sort()
    except TypeError:
        raise AnnotationFileError(f"the ids of the {what} mix numbers and text; use one kind") from None
    numbers = _as_integers(ids)
    return np.array(ids, object) if numbers is None else numbers


def _select_annotations(
    annotations: Sequence[dict[str, Any]],
    images: Mapping[Hashable, Any],
    categories: Mapping[Hashable, Any],
    federated: bool,
) -> list[dict[str, Any]]:
    """The annotations the reference APIs would load.

    Both look annotations up by id, so of two with one id the later stands in for the earlier as well.
    """
    by_id = {a["id"]: a for a in annotations}
    kept = [a for a in annotations if a["image_id"] in images and a["category_id"] in categories]
    if federated:
        kept = [a for a in kept if 0 < a["area"] < float("inf")]
    if len(by_id) < len(annotations):
        rank = {i: n for n, i in enumerate(sorted(images))}  # type: ignore[type-var]
        kept = [by_id[a["id"]] for a in sorted(kept, key=lambda a: rank[a["image_id"]])]
        kept = [a for a in kept if a["image_id"] in images and a["category_id"] in categories]
    return kept


def _field(annotations: Sequence[dict[str, Any]], key: str, shape: tuple[int, ...]) -> FloatArray:
    try:
        values = np.array([a[key] for a in annotations], np.float64).reshape(len(annotations), *shape)
    except (KeyError, ValueError, TypeError):
        for a in annotations:
            value = a.get(key)
            if value is None or np.shape(value) != shape:
                raise AnnotationFileError(
                    f"annotation id {a.get('id')} of image {a.get('image_id')}: {key} is {value!r}, "
                    f"expected {'four numbers x, y, width, height' if shape else 'a number'}"
                ) from None
        raise
    return values


def _frequencies(categories: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    for category in categories:
        if category.get("frequency") not in FREQUENCIES:
            raise AnnotationFileError(
                f"category {category['id']} ({category.get('name')}) has frequency {category.get('frequency')!r}; LVIS "
                "files say 'r', 'c' or 'f'. Is this a COCO-style file? Then score it with the coco protocol."
            )
    return tuple(c["frequency"] for c in categories)


def _image_sizes(images: Mapping[Hashable, Any], order: NDArray[Any]) -> IntArray:
    sizes = [(images[i].get("height", 0), images[i].get("width", 0)) for i in order.tolist()]
    return np.array(sizes, np.int64).reshape(len(order), 2)


def _image_lists(
    images: Mapping[Hashable, Any], order: NDArray[Any], categories: NDArray[Any], key: str, federated: bool
) -> IntArray:
    """Sorted pair keys of the (image, category) named in a list field of each image."""
    if not federated:
        return np.zeros(0, np.int64)
    image: list[int] = []
    named: list[Any] = []
    for row, image_id in enumerate(order.tolist()):
        ids = images[image_id].get(key)
        if ids is None:
            raise AnnotationFileError(
                f"image {image_id} has no {key}, which every image of an LVIS file has. "
                "Is this a COCO-style file? Then score it with the coco protocol."
            )
        image.extend([row] * len(ids))
        named.extend(ids)
    category = rows_of(named, categories)
    known = category >= 0
    return np.unique(np.array(image, np.int64)[known] * len(categories) + category[known])
