"""An annotation file as MMDetection's datasets take it apart: odd records are named, labels decided in one place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.regions.boxes import find_suspicious_boxes
from rar_mmdet.scoring.annotations import load_annotation_file
from rar_mmdet.scoring.columns import Records
from rar_mmdet.scoring.identifiers import differ_in_type_only, some_of

__all__ = ["AnnotationRecords", "read_records"]


@dataclass(frozen=True)
class AnnotationRecords:
    """What a dataset needs of an annotation file."""

    category_ids: list[int]  # of each label
    names: tuple[str, ...]  # of each label, as the file writes them
    images: dict[Hashable, dict[str, Any]]  # by id, in the order of the file
    annotations: dict[Hashable, list[dict[str, Any]]]  # by image id; bbox, area and flags are numbers
    notes: list[str]  # what a person should know of the file


def read_records(path: str | Path, where: str, classes: Sequence[str] | None) -> AnnotationRecords:
    """Read a file in COCO, LVIS or V3Det style.

    What MMDetection leaves out (boxes below one pixel, areas that are not positive) is left to it.

    Args:
        path: the file, on a local disk.
        where: what messages call it.
        classes: the names of the labels, see `label_order`; `None`: all categories of the file.

    Raises:
        AnnotationFileError: a record lacks a field or holds something else; the message names it.
        VocabularyError: see `label_order`.
    """
    dataset = load_annotation_file(path, keep_segmentations=True)
    categories = dataset.get("categories", [])
    category_ids = label_order(categories, classes, where)
    names = {category["id"]: category["name"] for category in categories}
    images = _section(dataset, "images", where, ("id", "file_name"))
    by_id = dict(zip(images.ids("id"), images.items, strict=True))
    notes: list[str] = []
    annotations = _annotations(dataset, where, by_id, names, notes)
    notes += _suspicions(by_id, annotations, where)
    return AnnotationRecords(category_ids, tuple(names[i] for i in category_ids), by_id, annotations, notes)


def _section(dataset: dict[str, Any], key: str, where: str, keys: tuple[str, ...]) -> Records:
    section = dataset.get(key)
    if section is None and key == "annotations":
        section = []  # files of test images have none
    if not isinstance(section, list):
        raise AnnotationFileError(
            f"{where} has no list {key!r} (it holds {some_of(dataset)}); expected a dictionary with the lists images, "
            "annotations and categories, as COCO and LVIS files are"
        )
    return Records(section, f"{where}, {key}", AnnotationFileError, keys)


def _annotations(
    dataset: dict[str, Any], where: str, images: dict, categories: dict, notes: list[str]
) -> dict[Hashable, list[dict[str, Any]]]:
    records = _section(dataset, "annotations", where, ("id", "image_id"))
    image_ids, label_ids = records.ids("image_id"), records.ids("category_id")
    for key, values, known in (("image_id", image_ids, images), ("category_id", label_ids, categories)):
        _check_known(records, key, values, known, notes)
    boxes = records.boxes("bbox")
    area = records.numbers("area", default=0.0)
    absent = np.array([record.get("area") is None for record in records.items], dtype=bool)
    area = np.where(absent, boxes[:, 2] * boxes[:, 3], area).tolist() if len(boxes) else []
    columns = zip(
        *(records.items, image_ids, label_ids, boxes.tolist(), area),
        *(records.flags("iscrowd").tolist(), records.flags("ignore").tolist()),
        strict=True,
    )
    found: dict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    for record, image_id, category_id, box, own_area, crowd, ignore in columns:
        found[image_id].append(
            record
            | {"image_id": image_id, "category_id": category_id, "bbox": box, "area": own_area}
            | {"iscrowd": int(crowd), "ignore": ignore}
        )
    return found


def _check_known(records: Records, key: str, values: list[Any], known: dict, notes: list[str]) -> None:
    """Ids of another type are refused; ids that are nowhere are left out, as MMDetection does, and noted."""
    unknown = [value for value in values if value not in known]
    if not unknown:
        return
    twin = differ_in_type_only(unknown, known)
    if twin is not None:
        records.refuse(values.index(twin[0]), key, f"an id as the file's other records have it: {twin[1]!r}")
    notes.append(
        f"{records.where}: {len(unknown)} of {len(values)} have no {key.removesuffix('_id')} in the file "
        f"({key} {some_of(unknown)}), and are left out"
    )


def _suspicions(images: dict, annotations: dict[Hashable, list[dict[str, Any]]], where: str) -> list[str]:
    """What looks wrong about the boxes of the images whose size is written down."""
    sized = {i: (r["height"], r["width"]) for i, r in images.items() if r.get("height") and r.get("width")}
    if not sized and images:
        return []
    if not any(annotations.get(i) for i in images):
        return [f"{where} has no annotations: there are no annotated boxes to recognise, and nothing can be scored"]
    boxes = [np.array([a["bbox"] for a in annotations.get(i, ())], np.float64).reshape(-1, 4) for i in sized]
    return [f"{where}: {sentence}" for sentence in find_suspicious_boxes(boxes, list(sized.values()), "xywh")]
