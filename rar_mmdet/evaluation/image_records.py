"""What a metric keeps of one image while the test runs: arrays in the detector's own precision, no dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.structures.mask import encode_mask_results
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from rar_mmdet.errors import DetectionError
from rar_mmdet.scoring.annotations import Detections

__all__ = ["ImageRecord", "as_detections", "check_labels", "json_records", "record_image"]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """Predictions of one image."""

    img_id: Any
    boxes_xyxy: NDArray[Any]  # (n, 4) as the detector gave them, original pixels
    scores: NDArray[Any]  # (n,)
    labels: NDArray[np.int32]  # (n,)
    masks: list[dict[str, Any]] | None  # n compressed RLEs
    mask_scores: NDArray[Any] | None  # (n,)
    truth: dict[str, Any] | None  # only where no annotation file is given


def record_image(sample: dict[str, Any], *, keep_masks: bool, truth: dict[str, Any] | None) -> ImageRecord:
    """Take the predictions out of a data sample.

    Raises:
        DetectionError: A score or box is NaN or infinite.
    """
    pred = sample["pred_instances"]
    boxes, scores = to_numpy(pred["bboxes"]).reshape(-1, 4), to_numpy(pred["scores"])
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DetectionError(
            f"image {sample['img_id']}: detection {row} has score {scores[row]} and box {boxes[row].tolist()}; "
            "both must be finite. Look for NaN in the model's weights or inputs."
        )
    masks = pred.get("masks") if keep_masks else None
    if masks is not None and not isinstance(masks, list):
        masks = encode_mask_results(to_numpy(masks))
    mask_scores = to_numpy(pred["mask_scores"]) if "mask_scores" in pred else None
    labels = to_numpy(pred["labels"]).astype(np.int32)
    return ImageRecord(sample["img_id"], boxes, scores, labels, masks, mask_scores, truth)


def to_numpy(values: Any) -> NDArray[Any]:
    """A tensor of any device and float type (bfloat16 as float32), or an array."""
    if isinstance(values, np.ndarray):
        return values
    values = values.detach().cpu()
    return values.float().numpy() if str(values.dtype) == "torch.bfloat16" else values.numpy()


def check_labels(records: Sequence[ImageRecord], num_labels: int) -> None:
    """Every label must name a category.

    Raises:
        DetectionError: One does not.
    """
    for record in records:
        if len(record.labels) and not 0 <= record.labels.min() <= record.labels.max() < num_labels:
            wrong = record.labels.min() if record.labels.min() < 0 else record.labels.max()
            raise DetectionError(
                f"image {record.img_id}: label {wrong}, but the annotations have {num_labels} of the dataset's "
                "categories; num_classes, metainfo and ann_file must describe one vocabulary"
            )


def as_detections(
    records: Sequence[ImageRecord], label_ids: Sequence[Any], *, masks: bool, mask_area: bool
) -> Detections:
    """All detections as arrays, in the order of the images.

    Args:
        records: One per image.
        label_ids: Category id of each label.
        masks: With masks, and with their scores where the detector gives any.
        mask_area: Areas are the masks', not the boxes' (COCO; MMDet's LVIS takes the boxes').
    """
    if not sum(len(record.scores) for record in records):
        return Detections.empty()
    segmentations = None
    if masks:
        for record in records:
            if record.masks is None:
                raise DetectionError(
                    f"image {record.img_id} has no masks: metric='segm' needs a detector that gives them"
                )
        segmentations = [mask for record in records for mask in record.masks or ()]
    return Detections(
        image_ids=_repeat([record.img_id for record in records], [len(record.scores) for record in records]),
        category_ids=_column(list(label_ids))[np.concatenate([record.labels for record in records])],
        boxes_xywh=_xywh(np.concatenate([record.boxes_xyxy for record in records])),
        scores=np.concatenate([_scores(record, masks) for record in records]).astype(np.float64),
        segmentations=segmentations,
        areas=np.array(mask_api.area(segmentations), np.float64) if segmentations is not None and mask_area else None,
    )


def json_records(
    records: Sequence[ImageRecord], label_ids: Sequence[Any], *, masks: bool
) -> Iterator[list[dict[str, Any]]]:
    """Result-file records, image by image, as MMDet's `results2json` makes them."""
    for record in records:
        boxes, scores = _xywh(record.boxes_xyxy).tolist(), _scores(record, masks).astype(np.float64).tolist()
        rows: list[dict[str, Any]] = [
            {"image_id": record.img_id, "bbox": box, "score": score, "category_id": label_ids[label]}
            for box, score, label in zip(boxes, scores, record.labels.tolist(), strict=True)
        ]
        if masks:
            for row, mask in zip(rows, record.masks or (), strict=True):
                counts = mask["counts"]
                row["segmentation"] = {**mask, "counts": counts.decode() if isinstance(counts, bytes) else counts}
        yield rows


def _scores(record: ImageRecord, masks: bool) -> NDArray[Any]:
    return record.mask_scores if masks and record.mask_scores is not None else record.scores


def _xywh(boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """Subtracted in double precision, as MMDet's `xyxy2xywh` does on Python floats."""
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _column(values: list[Any]) -> NDArray[Any]:
    if all(type(v) is int for v in values):
        return np.array(values, np.int64)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _repeat(values: list[Any], counts: list[int]) -> NDArray[Any]:
    return np.repeat(_column(values), counts)
