"""`RecognitionMetric`: top-k accuracy and the ranker's effect, beside AP in one test run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from numpy.typing import NDArray
from terminaltables import AsciiTable

from rar_mmdet.errors import AnnotationFileError, MetricConfigError
from rar_mmdet.evaluation.image_records import to_numpy
from rar_mmdet.registry import METRICS
from rar_mmdet.scoring.annotations import load_annotation_file
from rar_mmdet.scoring.recognition import ObjectOutcomes, RecognitionReport, judge_regions, summarise

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
        self._truth: dict[Any, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] | None = None
        self._frequencies: list[str] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Judge the regions of a batch at once; only a few numbers per object are kept."""
        for sample in data_samples:
            boxes, labels, areas = self._objects(sample)
            outcomes = judge_regions(boxes, labels, areas, _recognition(sample), self.iou_thr)
            self.results.append((sample["img_id"], outcomes))

    def compute_metrics(self, results: list[tuple[Any, ObjectOutcomes]]) -> dict[str, float]:
        """Summarise, log a table and write the files."""
        assert self.dataset_meta is not None, "the runner sets dataset_meta before it evaluates"
        outcomes = ObjectOutcomes.concatenate(list(dict(reversed(results)).values())[::-1])
        report = summarise(
            outcomes,
            self.dataset_meta["classes"],
            self._frequencies,
            top=self.top,
            recall_at=self.recall_at,
            max_confusions=self.max_confusions,
        )
        MMLogger.get_current_instance().info("\n" + report_table(report))
        if self.outfile_prefix is not None:
            write_report(report, self.outfile_prefix)
        return report.numbers

    def _objects(self, sample: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Boxes xyxy, labels and areas of the annotated objects of an image."""
        if self.ann_file is not None:
            if self._truth is None:
                self._truth = self._load()
            if sample["img_id"] not in self._truth:
                raise AnnotationFileError(f"image {sample['img_id']} is not in {self.ann_file}")
            return self._truth[sample["img_id"]]
        if "instances" not in sample:
            raise MetricConfigError(f"image {sample['img_id']} has no `instances`: give ann_file")
        kept = [i for i in sample["instances"] if not i.get("ignore_flag", 0)]
        boxes = np.array([i["bbox"] for i in kept], np.float64).reshape(-1, 4)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return boxes, np.array([i["bbox_label"] for i in kept], np.int64), areas

    def _load(self) -> dict[Any, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Objects of every image of the annotation file."""
        assert self.ann_file is not None, "called without an annotation file"
        assert self.dataset_meta is not None, "the runner sets dataset_meta before it tests"
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            dataset = load_annotation_file(path)
        classes = self.dataset_meta["classes"]
        categories = list({c["id"]: c for c in dataset["categories"]}.values())
        if len(categories) != len(classes):
            categories = [c for c in categories if c["name"] in set(classes)]
        if len(categories) != len(classes):
            raise AnnotationFileError(
                f"{self.ann_file} has {len(categories)} of the dataset's {len(classes)} classes; metainfo and ann_file "
                "must describe one vocabulary"
            )
        if all("frequency" in c for c in categories):
            self._frequencies = [c["frequency"] for c in categories]
        label_of = {c["id"]: label for label, c in enumerate(categories)}
        rows: dict[Any, list[tuple[list[float], int, float]]] = {image["id"]: [] for image in dataset["images"]}
        for a in dataset.get("annotations", ()):
            if a["category_id"] in label_of and a["image_id"] in rows and not a.get("iscrowd") and not a.get("ignore"):
                x, y, w, h = a["bbox"]
                rows[a["image_id"]].append(([x, y, x + w, y + h], label_of[a["category_id"]], a.get("area", w * h)))
        return {image: _columns(objects) for image, objects in rows.items()}


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
    if hasattr(recognition, "to_dict"):
        recognition = recognition.to_dict()
    missing = [name for name in FIELDS if name not in recognition]
    if missing:
        raise MetricConfigError(
            f"image {sample['img_id']}: `recognition` lacks {missing}, it has {sorted(recognition)}"
        )
    arrays = {name: to_numpy(recognition[name]) for name in FIELDS}
    pred = sample.get("pred_instances")
    if pred is not None and "region_ids" in pred:
        order = np.argsort(-to_numpy(pred["scores"]), kind="stable")
        arrays["emitted_regions"] = to_numpy(pred["region_ids"])[order]
        arrays["emitted_labels"] = to_numpy(pred["labels"])[order]
    return arrays


def _columns(objects: list[tuple[list[float], int, float]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    boxes = np.array([o[0] for o in objects], np.float64).reshape(-1, 4)
    return boxes, np.array([o[1] for o in objects], np.int64), np.array([o[2] for o in objects], np.float64)
