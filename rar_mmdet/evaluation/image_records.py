"""What a metric keeps of one image while the test runs: arrays in the detector's own precision, no dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.structures.mask import encode_mask_results
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from rar_mmdet.errors import DetectionError, MetricConfigError
from rar_mmdet.scoring.annotations import Detections
from rar_mmdet.scoring.identifiers import as_column
from rar_mmdet.scoring.masks import find_wrong_mask

__all__ = [
    "ImageRecord",
    "as_detections",
    "check_labels",
    "dataset_of_samples",
    "json_records",
    "record_image",
    "truth_of_sample",
]


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
    follows_classes: bool = False  # labels are known to index the dataset's classes


def record_image(
    sample: Mapping[str, Any], *, keep_masks: bool, truth: dict[str, Any] | None, follows_classes: bool = False
) -> ImageRecord:
    """Take the predictions out of a data sample.

    Raises:
        DetectionError: A score or box is NaN or infinite, or boxes, scores, labels and masks are not equally many.
    """
    pred = sample["pred_instances"]
    where = f"image {sample['img_id']}"
    boxes, scores, labels = (to_numpy(pred[key]) for key in ("bboxes", "scores", "labels"))
    count = len(scores)
    if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
        raise DetectionError(
            f"{where}: bboxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} do not fit together; "
            "expected (n, 4) x1, y1, x2, y2, (n,) and (n,)"
        )
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DetectionError(
            f"{where}: detection {row} has score {scores[row]} and box {boxes[row].tolist()}; "
            "both must be finite. Look for NaN in the model's weights or inputs."
        )
    if labels.dtype.kind not in "iu" and (labels != np.round(labels)).any():
        raise DetectionError(f"{where}: labels are {labels[:3].tolist()}, expected whole numbers")
    masks = _masks_of(pred, where, count) if keep_masks else None
    mask_scores = to_numpy(pred["mask_scores"]) if "mask_scores" in pred else None
    if mask_scores is not None and (mask_scores.shape != (count,) or not np.isfinite(mask_scores).all()):
        raise DetectionError(f"{where}: mask_scores {mask_scores.shape}, expected {count} finite numbers")
    return ImageRecord(
        sample["img_id"], boxes, scores, labels.astype(np.int32), masks, mask_scores, truth, follows_classes
    )


def _masks_of(pred: Mapping[str, Any], where: str, count: int) -> list[dict[str, Any]] | None:
    """The masks as compressed run lengths; those a detector encoded by itself are checked."""
    masks = pred.get("masks")
    if masks is None:
        return None
    if not isinstance(masks, list):
        masks = encode_mask_results(to_numpy(masks))
    else:
        wrong = find_wrong_mask(masks)
        if wrong is not None:
            raise DetectionError(f"{where}: the mask of detection {wrong[0]} cannot be used: {wrong[1]}")
    if len(masks) != count:
        raise DetectionError(f"{where}: {len(masks)} masks for {count} detections; each needs one")
    return masks


def truth_of_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Size and annotations of a data sample, in the form of the stock metric's `gt_to_coco_json`.

    Raises:
        MetricConfigError: The sample has no annotations.
    """
    if "instances" not in sample:
        raise MetricConfigError(
            f"image {sample['img_id']} has no `instances`: give ann_file, or pack the annotations into the samples"
        )
    height, width = sample["ori_shape"][:2]
    return {"img_id": sample["img_id"], "height": height, "width": width, "anns": sample["instances"]}


def dataset_of_samples(truths: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """A COCO-style annotation dictionary; category ids are labels, annotation ids count from 1 (0 is never found).

    Args:
        truths: One for each image: `height`, `width`, `anns` (`bbox` x1, y1, x2, y2, `bbox_label`, and perhaps
            `ignore_flag` and `mask`) and perhaps `img_id` (its place by default).
        classes: Names of the labels.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, truth in enumerate(truths):
        image_id = truth.get("img_id", place)
        images.append({"id": image_id, "width": truth["width"], "height": truth["height"], "file_name": ""})
        for instance in truth["anns"]:
            x1, y1, x2, y2 = (float(v) for v in instance["bbox"])
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": int(instance.get("ignore_flag", 0)),
                "category_id": int(instance["bbox_label"]),
                "area": (x2 - x1) * (y2 - y1),
            }
            if instance.get("mask"):
                annotation["segmentation"] = _json_mask(instance["mask"])
            annotations.append(annotation)
    return {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
    }


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
        category_ids=as_column(list(label_ids))[np.concatenate([record.labels for record in records])],
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
                row["segmentation"] = _json_mask(mask)
        yield rows


def _scores(record: ImageRecord, masks: bool) -> NDArray[Any]:
    return record.mask_scores if masks and record.mask_scores is not None else record.scores


def _xywh(boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """Subtracted in double precision, as MMDet's `xyxy2xywh` does on Python floats."""
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _json_mask(mask: Any) -> Any:
    """A segmentation as JSON can hold it: compressed run lengths as text."""
    if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
        return {**mask, "counts": mask["counts"].decode()}
    return mask


def _repeat(values: list[Any], counts: list[int]) -> NDArray[Any]:
    return np.repeat(as_column(values), counts)
