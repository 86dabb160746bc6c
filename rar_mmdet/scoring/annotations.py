"""Detections and annotations as flat arrays: what every protocol of this folder scores.

Shapes: I images, K categories, G annotations, M detections. Boxes are `xywh` float64 in original pixels, as the COCO
and LVIS files hold them. An image or category is named by its row (`image`, `category`) in the sorted id lists.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.scoring.annotation_table import FREQUENCIES, AnnotationTable, read_table
from rar_mmdet.scoring.identifiers import rows_of
from rar_mmdet.scoring.json_files import load_json

__all__ = ["FREQUENCIES", "Detections", "GroundTruth", "load_annotation_file", "rows_of"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FEDERATED_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
ANNOTATION_HINT = (
    "Expected a COCO-style annotation file: a JSON dictionary with images, annotations and categories, such as "
    "instances_val2017.json or lvis_v1_val.json"
)


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
    novel: BoolArray | None = None  # (K,) not seen in training (V3Det's open-vocabulary split); None: not said
    segmentations: tuple[Any, ...] | None = None  # G COCO segmentations, kept on request
    notes: tuple[str, ...] = ()  # what a person should know of the file: sentences

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
            novel=None,
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
        need_area: bool = True,
        where: str = "the annotation file",
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
            need_area: Refuse annotations without `area`; else the box's area stands for it.
            where: Name of the file, for messages.

        Raises:
            AnnotationFileError: The dictionary lacks something the protocol needs, or holds a record that cannot be
                scored; the message names it.
        """
        table = read_table(dataset, where, with_masks=keep_segmentations, need_area=need_area)
        images, categories = _chosen(image_ids, table.image_ids), _chosen(category_ids, table.category_ids)
        image = _renumber(images, len(table.image_ids))[table.image]
        category = _renumber(categories, len(table.category_ids))[table.category]
        frequencies = table.frequencies() if federated else None
        negatives, not_exhaustive = (
            _listed_pairs(table, key, images, categories) if federated else np.zeros(0, np.int64)
            for key in FEDERATED_LISTS
        )
        novel = table.novel()
        index = _as_the_references_load(table, image, category, federated)
        crowd = table.crowd[index]
        return GroundTruth(
            image_ids=table.image_ids[images],
            image_hw=table.image_hw[images],
            category_ids=table.category_ids[categories],
            category_names=tuple(table.category_names[k] for k in categories),
            frequencies=None if frequencies is None else tuple(frequencies[k] for k in categories),
            image=image[index],
            category=category[index],
            boxes_xywh=table.boxes_xywh[index],
            area=table.area[index],
            crowd=np.zeros(len(index), bool) if federated else crowd,
            ignore=table.ignore[index] if federated else crowd,
            counts=np.array([table.ids[i] != 0 for i in index], bool),
            negatives=negatives,
            not_exhaustive=not_exhaustive,
            novel=None if novel is None else novel[categories],
            segmentations=None if table.segmentations is None else tuple(table.segmentations[i] for i in index),
            notes=(*table.notes, *(_notes_on_areas(table) if federated else ())),
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
    dataset = load_json(path, "annotation file", AnnotationFileError, hint=ANNOTATION_HINT, object_hook=hook)
    if not isinstance(dataset, dict):
        raise AnnotationFileError(
            f"annotation file {path} holds a {type(dataset).__name__}, expected a dictionary with "
            "images, annotations and categories; were the result file and the annotation file swapped?"
        )
    return dataset


def _notes_on_areas(table: AnnotationTable) -> list[str]:
    count = int(np.count_nonzero(table.area == 0))
    return [f"{count} annotations have area 0 and are left out, as in lvis-api"] if count else []


def _listed_pairs(table: AnnotationTable, key: str, images: IntArray, categories: IntArray) -> IntArray:
    """Sorted pair keys of the chosen images and categories that a list field of the images names."""
    image, category = table.listed_categories(key)
    row = _renumber(images, len(table.image_ids))[image]
    column = _renumber(categories, len(table.category_ids))[category]
    return np.unique((row * len(categories) + column)[(row >= 0) & (column >= 0)])


def _chosen(wanted: Iterable[Hashable] | None, ids: NDArray[Any]) -> IntArray:
    """Rows of the wanted ids, ascending; those that are nowhere are passed over."""
    if wanted is None:
        return np.arange(len(ids))
    rows = np.unique(rows_of(list(wanted), ids))
    return rows[rows >= 0]


def _renumber(rows: IntArray, count: int) -> IntArray:
    """(count + 1,) place of each row among the chosen ones, -1 for the others and for row -1."""
    place = np.full(count + 1, -1, np.int64)
    place[rows] = np.arange(len(rows))
    return place


def _as_the_references_load(table: AnnotationTable, image: IntArray, category: IntArray, federated: bool) -> IntArray:
    """Rows of the annotations that take part, by image and within an image as in the file.

    Both APIs look annotations up by id, so of two with one id the later stands in for the earlier as well.
    """
    taken = (image >= 0) & (category >= 0)
    if federated:
        taken &= table.area > 0
    index = np.flatnonzero(taken)
    last = {annotation_id: row for row, annotation_id in enumerate(table.ids)}
    if len(last) < len(table.ids):
        index = index[np.argsort(image[index], kind="stable")]
        index = np.array([last[table.ids[i]] for i in index], np.int64)
        index = index[(image[index] >= 0) & (category[index] >= 0)]
    return index[np.argsort(image[index], kind="stable")]
