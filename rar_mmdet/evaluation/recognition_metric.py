"""`RecognitionMetric`: top-k accuracy and the ranker's effect, beside AP in one test run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from numpy.typing import NDArray
from terminaltables import AsciiTable

from rar_mmdet.errors import AnnotationFileError, DetectionError, MetricConfigError
from rar_mmdet.evaluation.image_records import to_numpy
from rar_mmdet.evaluation.labels import check_vocabulary, classes_of
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.registry import METRICS
from rar_mmdet.scoring.annotation_table import FREQUENCIES, read_table
from rar_mmdet.scoring.annotations import load_annotation_file
from rar_mmdet.scoring.recognition import (
    ImageObjects,
    ObjectOutcomes,
    RecognitionReport,
    judge_regions,
    objects_by_image,
    summarise,
)
from rar_mmdet.terminal import show

__all__ = ["RecognitionMetric"]

FIELDS = ("bboxes", "shortlist_ids", "ranked_ids", "status")


@METRICS.register_module()
class RecognitionMetric(BaseMetric):
    """Top-k accuracy, shortlist recall, and the share of regions the ranker was asked about, changed, improved, harmed.

    Reads `recognition` of the data samples, which the heads of this project write. `top…` follows the ranker's order,
    `retrieval_top…` the encoder's, `emitted_top…` the fused scores that AP reads (where detections carry `region_ids`),
    `recall@k` is what a perfect ranker of k candidates could reach. Rates are in [0, 1], in full and with the suffixes
    `_r _c _f` (LVIS frequency) and `_s _m _l` (COCO area); -1 where there is nothing to rate.

    Args:
        ann_file: Annotation file; None takes the annotations of the data samples (no frequency bins then).
        iou_thr: Least IoU between an annotated object and the region that is judged for it.
        top: k of the top-k accuracies.
        recall_at: k of the shortlist's recall.
        outfile_prefix: Writes `prefix.recognition.json`, `.classes.csv` and `.confusions.csv`; None writes none.
        max_confusions: Confusion pairs to list.
        backend_args: For reading `ann_file`.
        collect_device: 'cpu' or 'gpu'.
        prefix: Put before the names of the numbers.
    """

    default_prefix: ClassVar[str | None] = "recognition"

    def __init__(
        self,
        ann_file: str | None = None,
        iou_thr: float = 0.5,
        top: Sequence[int] = (1, 5),
        recall_at: Sequence[int] = (1, 5, 10, 20),
        outfile_prefix: str | None = None,
        max_confusions: int = 100,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not 0 < iou_thr <= 1:
            raise MetricConfigError(f"iou_thr={iou_thr}: expected a value in (0, 1]")
        if ann_file is not None and backend_args is None and not os.path.exists(ann_file):
            raise AnnotationFileError(f"ann_file {ann_file} does not exist (working directory: {os.getcwd()})")
        self.ann_file, self.backend_args = ann_file, backend_args
        self.iou_thr, self.top, self.recall_at = iou_thr, tuple(top), tuple(recall_at)
        self.outfile_prefix, self.max_confusions = outfile_prefix, max_confusions

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Judge the regions of a batch at once; only a few numbers per object are kept.

        Raises:
            DetectionError: A label is beyond the dataset's classes.
            VocabularyError: The model's vocabulary is not the dataset's.
            MetricConfigError: A sample lacks `recognition`, or its annotations.
        """
        for sample in data_samples:
            recognition = _recognition(sample)
            check_vocabulary(sample, self.dataset_meta)
            _check_labels(recognition, len(classes_of(self.dataset_meta)), sample["img_id"])
            outcomes = judge_regions(self._objects(sample), recognition, self.iou_thr)
            self.results.append((sample["img_id"], outcomes))

    def compute_metrics(self, results: list[tuple[Any, ObjectOutcomes]]) -> dict[str, float]:
        """Summarise, log a table and write the files."""
        outcomes = ObjectOutcomes.concatenate(list(dict(reversed(results)).values())[::-1])
        report = summarise(
            outcomes,
            classes_of(self.dataset_meta),
            self.truth.frequencies if self.truth is not None else None,
            top=self.top,
            recall_at=self.recall_at,
            max_confusions=self.max_confusions,
        )
        logger = MMLogger.get_current_instance()
        show(logger, "\n" + report_table(report))
        if not len(outcomes):
            logger.warning("the images that were tested have no annotated object: nothing can be rated")
        elif not outcomes.matched.any():
            logger.warning(
                f"no region covers any of the {len(outcomes)} annotated objects (IoU {self.iou_thr} or more): nothing "
                "can be rated. Are there regions at all, and are both in pixels of the original photos?"
            )
        if self.outfile_prefix is not None:
            write_report(report, self.outfile_prefix)
        return report.numbers

    @cached_property
    def truth(self) -> AnnotatedObjects | None:
        """What the annotation file holds, read when first asked for; None without one."""
        if self.ann_file is None:
            return None
        where = f"annotation file {self.ann_file}"
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            dataset = load_annotation_file(path)
        ids = label_order(dataset.get("categories", []), classes_of(self.dataset_meta), where)
        table = read_table(dataset, where, with_masks=False, need_area=False)
        for note in table.notes:
            MMLogger.get_current_instance().warning(note)
        by_id = {category["id"]: category for category in table.categories.items}
        frequencies = tuple(by_id[i].get("frequency") for i in ids)
        return AnnotatedObjects(
            objects_by_image(table, ids), frequencies if set(frequencies) <= set(FREQUENCIES) else None
        )

    def _objects(self, sample: dict[str, Any]) -> ImageObjects:
        """The annotated objects of an image."""
        if self.truth is not None:
            if sample["img_id"] not in self.truth.by_image:
                raise AnnotationFileError(
                    f"image {sample['img_id']} is not in {self.ann_file}; give the annotation file of the images tested"
                )
            return self.truth.by_image[sample["img_id"]]
        if "instances" not in sample:
            raise MetricConfigError(f"image {sample['img_id']} has no `instances`: give ann_file")
        kept = [i for i in sample["instances"] if not i.get("ignore_flag", 0)]
        boxes = np.array([i["bbox"] for i in kept], np.float64).reshape(-1, 4)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return ImageObjects(boxes, np.array([i["bbox_label"] for i in kept], np.int64), areas)


@dataclass(frozen=True)
class AnnotatedObjects:
    """Objects of an annotation file."""

    by_image: dict[Hashable, ImageObjects]  # image id -> its objects
    frequencies: tuple[str, ...] | None  # of each label (LVIS)


def report_table(report: RecognitionReport) -> str:
    """Numbers as a table: one row for each rate, one column for each bin."""
    suffixes = ("", "_r", "_c", "_f", "_s", "_m", "_l")
    used = [s for s in suffixes if f"top1{s}" in report.numbers or s == ""]
    stems = [key for key in report.numbers if f"{key}_s" in report.numbers]
    rows = [["", *("all" if s == "" else s[1:] for s in used)]]
    for stem in stems:
        values = [report.numbers[f"{stem}{s}"] for s in used]
        rows.append([stem, *("-" if v < 0 else f"{100 * v:.1f}" for v in values)])
    title = (
        f"{report.numbers['objects']:.0f} objects, {100 * max(report.numbers['matched'], 0):.1f} % matched by a region"
    )
    return f"{title}; rates in %\n{AsciiTable(rows).table}"


def write_report(report: RecognitionReport, prefix: str) -> None:
    """Write `prefix.recognition.json`, `prefix.classes.csv` and `prefix.confusions.csv`."""
    os.makedirs(os.path.dirname(prefix) or ".", exist_ok=True)
    with open(f"{prefix}.recognition.json", "w", encoding="utf-8") as file:
        json.dump({"numbers": report.numbers, "confusions": report.confusions}, file, indent=1)
    for name, rows in (("classes", report.per_class), ("confusions", report.confusions)):
        with open(f"{prefix}.{name}.csv", "w", encoding="utf-8", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


def _recognition(sample: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The fields this metric reads, as arrays."""
    recognition = sample.get("recognition")
    if recognition is None:
        raise MetricConfigError(
            f"image {sample['img_id']} has no `recognition`: RecognitionMetric needs a model of this project "
            "(RARRoIHead, ProposalRecognizer or RARDetector)"
        )
    missing = [name for name in FIELDS if name not in recognition]
    if missing:
        raise MetricConfigError(
            f"image {sample['img_id']}: `recognition` lacks {missing}, it has {sorted(recognition.keys())}"
        )
    arrays = {name: to_numpy(recognition[name]) for name in FIELDS}
    pred = sample.get("pred_instances")
    if pred is not None and "region_ids" in pred:
        order = np.argsort(-to_numpy(pred["scores"]), kind="stable")
        arrays["emitted_regions"] = to_numpy(pred["region_ids"])[order]
        arrays["emitted_labels"] = to_numpy(pred["labels"])[order]
    return arrays


def _check_labels(recognition: Mapping[str, NDArray[Any]], num_classes: int, img_id: Any) -> None:
    for name in ("shortlist_ids", "ranked_ids"):
        ids = recognition[name]
        if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
            raise DetectionError(
                f"image {img_id}: {name} holds label {ids.min() if ids.min() < 0 else ids.max()}, but the dataset has "
                f"{num_classes} classes; the recognizer's vocabulary and the dataset's classes must be one list"
            )
