"""Do results and annotations belong together? Ids, boxes and masks of both, before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rar_mmdet.errors import ResultFileError, UnknownCategoryError, UnknownImageError
from rar_mmdet.scoring.annotations import Detections, GroundTruth, IntArray
from rar_mmdet.scoring.box_checks import are_fractions, note_on_boxes
from rar_mmdet.scoring.identifiers import differ_in_type_only, rows_of, some_of
from rar_mmdet.scoring.masks import mask_size

__all__ = ["image_rows", "note_on_categories", "note_on_scores", "notes_on_pair"]


def image_rows(truth: GroundTruth, detections: Detections) -> IntArray:
    """(M,) row of the image of each detection.

    Raises:
        UnknownImageError: A detection is of an image the annotations do not have.
    """
    rows = rows_of(detections.image_ids, truth.image_ids)
    unknown = np.flatnonzero(rows < 0)
    if not len(unknown):
        return rows
    values = detections.image_ids[unknown].tolist()
    twin = differ_in_type_only(values, truth.image_ids.tolist())
    if twin is not None:
        advice = f"The annotations have {twin[1]!r}: write image_id as they do, as text or as a number"
    elif len(unknown) == len(rows):
        advice = "None of the detections is of an image of the annotations: are they of another split or dataset?"
    else:
        advice = "Are some of another split? Every image that was tested must be in the annotation file"
    raise UnknownImageError(
        f"detection {unknown[0]} is of image {values[0]!r}, which the annotations do not have, as are {len(unknown)} "
        f"of {len(rows)} detections (images {some_of(values)}; the annotations have {len(truth.image_ids)} images, "
        f"such as {some_of(truth.image_ids.tolist())}). {advice}"
    )


def note_on_categories(truth: GroundTruth, category_ids: np.ndarray, rows: IntArray) -> str | None:
    """A sentence on detections whose category the annotations do not have, which the reference APIs pass over.

    Args:
        truth: The annotations.
        category_ids: (M,) of the detections.
        rows: (M,) their rows in the annotations, -1 for none.

    Raises:
        UnknownCategoryError: The ids differ from those of the annotations in type only.
    """
    unknown = category_ids[rows < 0].tolist()
    if not unknown:
        return None
    known = truth.category_ids.tolist()
    twin = differ_in_type_only(unknown, known)
    if twin is not None:
        raise UnknownCategoryError(
            f"detection {category_ids.tolist().index(twin[0])} has category_id {twin[0]!r}, the annotations have "
            f"{twin[1]!r}: write category_id as they do, as text or as a number ({len(unknown)} of {len(rows)} "
            "detections have an unknown category)"
        )
    examples = some_of(sorted(set(unknown), key=str))
    said = (
        f"{len(unknown)} of {len(rows)} detections are left out: category_id {examples} is no category of the "
        f"annotations, which have {len(known)} ({_range(known)})"
    )
    hint = "; is it another dataset's file?" if len(unknown) == len(rows) else ""
    used = set(category_ids.tolist())
    if all(isinstance(v, int) for v in used) and min(used) >= 0 and max(used) <= len(known) and max(used) < max(known):
        hint = (
            f". The ids in use run from {min(used)} to {max(used)}: are they places in the list of categories, counted "
            f"from {min(min(used), 1)}? A result file holds the `id` of each category"
        )
    return said + hint


def note_on_scores(detections: Detections) -> str | None:
    """A sentence where all scores are equal, so that they order nothing."""
    scores = detections.scores
    if len(scores) < 2 or scores.min() < scores.max():
        return None
    return (
        f"all {len(scores)} detections have the score {scores[0]:g}: average precision then follows their order in the "
        "file. Does the detector give scores?"
    )


def notes_on_pair(truth: GroundTruth, detections: Detections, *, masks: bool) -> list[str]:
    """What a person should know before they read the numbers.

    Raises:
        UnknownImageError: A detection is of an image the annotations do not have.
        ResultFileError: A mask has another size than its image.
    """
    if not len(detections):
        return []
    rows = image_rows(truth, detections)
    notes = [note_on_boxes(detections.boxes_xywh, truth.image_hw[rows], "detections")]
    if are_fractions(detections.boxes_xywh):
        notes.append("all boxes of the detections lie within 0 and 1: COCO boxes are pixels of the original photo")
    if masks:
        notes.append(_note_on_masks(truth, detections, rows))
    return [note for note in notes if note is not None]


def _note_on_masks(truth: GroundTruth, detections: Detections, rows: IntArray) -> str | None:
    segmentations: Sequence[Any] = detections.segmentations or [None] * len(detections)
    bare = 0
    for i, (mask, row) in enumerate(zip(segmentations, rows.tolist(), strict=True)):
        bare += mask is None
        size = None if mask is None else mask_size(mask)
        height, width = truth.image_hw[row].tolist()
        if size is not None and height and width and size != (height, width):
            raise ResultFileError(
                f"detection {i} (image {detections.image_ids[i]}) has a mask of {size[0]} x {size[1]}, its image is "
                f"{height} x {width} (height x width): segmentation must be in pixels of the original photo"
            )
    if not bare:
        return None
    return f"{bare} of {len(detections)} detections have no mask: their box stands for it, as in the reference APIs"


def _range(known: Sequence[Any]) -> str:
    return f"{known[0]!r} to {known[-1]!r}" if known else "none"
