"""What `SparseCocoMetric` and `SparseLVISMetric` share: collecting predictions, labels, files, coverage, tables.

No rule of scoring stands here. Constructors of the two metrics have more parameters than this project allows itself
(ten), because they take the place of MMDetection's `CocoMetric` and `LVISMetric`, keys and their order included.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from rar_mmdet.errors import AnnotationFileError, MetricConfigError, MetricNameError, RemovedKeyError
from rar_mmdet.evaluation.image_records import (
    ImageRecord,
    as_detections,
    check_labels,
    json_records,
    record_image,
    truth_of_sample,
)
from rar_mmdet.evaluation.labels import check_vocabulary, classes_of, label_ids
from rar_mmdet.evaluation.proposal_recall import proposal_recall
from rar_mmdet.scoring.annotations import Detections, GroundTruth, load_annotation_file
from rar_mmdet.scoring.image_lists import check_known_images, read_image_ids
from rar_mmdet.scoring.protocols import explain_zero
from rar_mmdet.scoring.result_files import write_results
from rar_mmdet.scoring.settings import COCO, Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult, evaluate
from rar_mmdet.scoring.summaries import per_category_ap
from rar_mmdet.terminal import show

__all__ = ["SparseMetric", "refuse_file_client"]

METRIC_NAMES = ("bbox", "segm", "proposal", "proposal_fast")
FULL_DIGITS = 17  # decimals that keep every float apart


class SparseMetric(BaseMetric):
    """Base of the sparse metrics; see `SparseCocoMetric` for the arguments.

    Attributes as of the stock metrics: `metrics`, `iou_thrs`, `outfile_prefix`, … as they were given; `cat_ids` and
    `img_ids`, None until the metric is evaluated, then the category of each label and the images that are scored.
    """

    is_federated: ClassVar[bool]
    labels_all_categories: ClassVar[bool]  # MMDetection's own dataset numbers all categories, whatever its classes
    items: ClassVar[tuple[str, ...]]  # numbers reported by default
    recall_items: ClassVar[tuple[str, ...]]  # numbers of metric='proposal'

    def __init__(
        self,
        *,
        ann_file: str | None,
        metric: str | Sequence[str],
        classwise: bool,
        proposal_nums: Sequence[int],
        iou_thrs: float | Sequence[float] | None,
        metric_items: Sequence[str] | None,
        format_only: bool,
        outfile_prefix: str | None,
        backend_args: dict[str, Any] | None,
        collect_device: str,
        prefix: str | None,
        img_ids: str,
        digits: int | None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.metrics: list[str] = [metric] if isinstance(metric, str) else list(metric)
        self.classwise, self.metric_items = classwise, metric_items
        self.proposal_nums = list(proposal_nums)
        self.iou_thrs = COCO.iou_thrs if iou_thrs is None else iou_thrs
        self.format_only, self.outfile_prefix = format_only, outfile_prefix
        self.ann_file, self.backend_args = ann_file, backend_args
        self.scored_images, self.digits = img_ids, digits
        self.cat_ids: list[Any] | None = None
        self.img_ids: list[Any] | None = None
        self._check_settings()

    # What an evaluation protocol decides.

    @abstractmethod
    def protocol_of(self, name: str) -> Protocol:
        """The rules of 'bbox', 'segm' or 'proposal'."""

    @abstractmethod
    def summarise(self, name: str, result: SparseResult, truth: GroundTruth) -> dict[str, float]:
        """All numbers of a result under the stock metric's names."""

    def further_numbers(
        self, name: str, truth: GroundTruth, detections: Detections, result: SparseResult
    ) -> dict[str, float]:
        """Numbers beside those of the stock metric; none by default."""
        return {}

    def dataset_of(self, records: Sequence[ImageRecord]) -> dict[str, Any]:
        """The annotation dictionary."""
        assert self.ann_file is not None, "metrics that need no annotation file make their own dictionary"
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            return load_annotation_file(path, keep_segmentations="segm" in self.metrics)

    # The run.

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the predictions of a batch as arrays.

        Raises:
            DetectionError: A score or box is NaN or infinite, or the shapes do not fit together.
            VocabularyError: The model's vocabulary is not the dataset's.
        """
        keep_masks = "segm" in self.metrics or self.outfile_prefix is not None
        for sample in data_samples:
            self.results.append(
                record_image(
                    sample,
                    keep_masks=keep_masks,
                    truth=truth_of_sample(sample) if self.ann_file is None else None,
                    follows_classes=check_vocabulary(sample, self.dataset_meta),
                )
            )

    def compute_metrics(self, results: list[ImageRecord]) -> dict[str, float]:
        """Score what was kept; see the class for the keys."""
        logger = MMLogger.get_current_instance()
        records = list({record.img_id: record for record in reversed(results)}.values())[::-1]
        if len(records) < len(results):
            logger.warning(f"{len(results) - len(records)} repeated images were scored once")
        dataset = self.dataset_of(records)
        self.cat_ids = self.label_ids_of(dataset, records)
        check_labels(records, len(self.cat_ids))
        if self.outfile_prefix is not None:
            self._write_results(self.outfile_prefix, records, self.cat_ids)
        numbers: dict[str, float] = OrderedDict()
        if self.format_only:
            logger.info(f"results are saved in {os.path.dirname(self.outfile_prefix or '')}")
            return numbers
        told: set[str] = set()
        wanted = self._chosen_images(records, dataset)
        if wanted is not None:
            chosen = set(wanted)
            records = [record for record in records if record.img_id in chosen]
        for name in self.metrics:
            truth = GroundTruth.from_dataset(
                dataset,
                federated=self.is_federated,
                image_ids=wanted,
                category_ids=self.cat_ids,
                keep_segmentations=name == "segm",
                where=self.where,
            )
            self.img_ids = truth.image_ids.tolist()
            self._warn([*truth.notes, *self._coverage(len(records), dataset)], told)
            logger.info(f"Evaluating {name}...")
            if name == "proposal_fast":
                numbers.update(self._proposal_fast(records, truth))
            else:
                numbers.update(self._score(name, records, truth, told))
        if wanted is not None and len(wanted) < _count_images(dataset):
            numbers["images_scored"] = len(wanted)
        return numbers

    def _chosen_images(self, records: Sequence[ImageRecord], dataset: dict[str, Any]) -> list[Any] | None:
        """Ids of the images that are scored; None for all."""
        if self.scored_images == "all":
            return None
        if self.scored_images == "seen":
            return [record.img_id for record in records]
        wanted = read_image_ids(self.scored_images)
        check_known_images(wanted, [image["id"] for image in dataset["images"]], self.where)
        return wanted

    def _score(self, name: str, records: list[ImageRecord], truth: GroundTruth, told: set[str]) -> dict[str, float]:
        """The numbers of one metric."""
        logger = MMLogger.get_current_instance()
        assert self.cat_ids is not None, "compute_metrics sets it"
        detections = as_detections(records, self.cat_ids, masks=name == "segm", mask_area=not self.is_federated)
        result = evaluate(truth, detections, self.protocol_of(name))
        self._warn([*result.matches.notes, *explain_zero(truth, detections, result)], told)
        if result.matches.dropped:
            logger.info(f"detections left out, as in the reference API: {result.matches.dropped}")
        numbers: dict[str, float] = OrderedDict()
        if self.classwise and name != "proposal":
            numbers.update(self._classwise(result, truth))
        summary = self.summarise(name, result, truth)
        numbers.update(self.report(name, summary))
        numbers.update(self.further_numbers(name, truth, detections, result))
        rows = [["number", "value"], *([key, f"{value:.3f}"] for key, value in summary.items())]
        show(logger, f"{name}\n" + AsciiTable(rows).table)
        return numbers

    def report(
        self, name: str, summary: dict[str, float], suffix: str = "", items: Iterable[str] | None = None
    ) -> dict[str, float]:
        """The given items, or those the metric reports, under the stock metric's names."""
        numbers: dict[str, float] = OrderedDict()
        if items is None:
            items = self.metric_items
        if items is None:
            items = self.recall_items if name == "proposal" else self.items
        for item in items:
            if item not in summary:
                raise MetricConfigError(
                    f"{item} is not measured by metric={name!r} with proposal_nums={self.proposal_nums}, but "
                    f"{', '.join(summary)} are"
                )
            key = item if name == "proposal" else f"{name}_{item}"
            value = summary[item]
            numbers[key + suffix] = float(value) if self.digits is None else float(f"{value:.{self.digits}f}")
        return numbers

    def label_ids_of(self, dataset: dict[str, Any], records: Sequence[ImageRecord]) -> list[Any]:
        """Category id of each label."""
        return label_ids(
            dataset.get("categories", []),
            classes_of(self.dataset_meta),
            self.where,
            known_order=all(record.follows_classes for record in records),
            all_categories=self.labels_all_categories,
        )

    @property
    def where(self) -> str:
        """What messages call the annotations."""
        return f"annotation file {self.ann_file}" if self.ann_file is not None else "the data samples"

    def _warn(self, notes: Sequence[str], told: set[str]) -> None:
        """Each sentence once in an evaluation."""
        for note in notes:
            if note not in told:
                told.add(note)
                MMLogger.get_current_instance().warning(note)

    def _coverage(self, num_seen: int, dataset: dict[str, Any]) -> list[str]:
        num_images = _count_images(dataset) if self.scored_images in ("all", "seen") else len(self.img_ids or ())
        if num_seen >= num_images:
            return []
        if self.scored_images == "seen":
            return [f"the numbers are over the {num_seen} images that were tested, of {num_images} in {self.where}"]
        return [
            f"{num_seen} of the {num_images} images of {self.where} were tested, and the numbers are over all "
            f"{num_images}: every object of the other {num_images - num_seen} counts as missed. For a subset, set "
            "img_ids='seen': --cfg-options test_evaluator.0.img_ids=seen, where 0 is the place of this metric in the "
            "list (test_evaluator.img_ids=seen where the config has one evaluator, not a list)."
        ]

    def _classwise(self, result: SparseResult, truth: GroundTruth) -> dict[str, float]:
        """AP of every category, in the order of the labels; categories that share a name carry their id too."""
        logger = MMLogger.get_current_instance()
        assert self.cat_ids is not None, "compute_metrics sets it"
        ids, values = truth.category_ids.tolist(), per_category_ap(result).tolist()
        often = Counter(truth.category_names)
        names = {
            i: name if often[name] == 1 else f"{name} (category {i})"
            for i, name in zip(ids, truth.category_names, strict=True)
        }
        value_of = dict(zip(ids, values, strict=True))
        show(
            logger,
            "\n" + AsciiTable([["category", "AP"], *([names[i], f"{value_of[i]:.3f}"] for i in self.cat_ids)]).table,
        )
        digits = FULL_DIGITS if self.digits is None else self.digits
        return {f"{names[i]}_precision": round(value_of[i], digits) for i in self.cat_ids}

    def _proposal_fast(self, records: list[ImageRecord], truth: GroundTruth) -> dict[str, float]:
        boxes = {record.img_id: record.boxes_xyxy for record in records}
        recall = proposal_recall(truth, boxes, self.proposal_nums, np.atleast_1d(np.asarray(self.iou_thrs, np.float64)))
        named = {f"AR@{n}": float(r) for n, r in zip(self.proposal_nums, recall, strict=True)}
        MMLogger.get_current_instance().info(", ".join(f"{key} {value:.4f}" for key, value in named.items()))
        return named

    def _write_results(self, prefix: str, records: list[ImageRecord], ids: list[Any]) -> None:
        """`prefix.bbox.json` and, with masks, `prefix.segm.json`, as the stock metrics write them."""
        os.makedirs(os.path.dirname(prefix) or ".", exist_ok=True)
        write_results(f"{prefix}.bbox.json", json_records(records, ids, masks=False))
        if any(record.masks is not None for record in records):
            write_results(f"{prefix}.segm.json", json_records(records, ids, masks=True))

    def _check_settings(self) -> None:
        for name in self.metrics:
            if name not in METRIC_NAMES:
                raise MetricNameError(f"metric should be one of {', '.join(map(repr, METRIC_NAMES))}, but got {name}.")
        known = self.items + self.recall_items
        for item in self.metric_items or ():
            if item not in known:
                raise MetricNameError(f'metric item "{item}" is not supported; known: {", ".join(known)}')
        if self.format_only and self.outfile_prefix is None:
            raise MetricConfigError(
                "format_only=True only writes result files: say where with outfile_prefix='a/b/name'"
            )
        if self.scored_images not in ("all", "seen") and not os.path.isfile(self.scored_images):
            raise MetricConfigError(
                f"img_ids={self.scored_images!r}: say 'all', 'seen' or a file that lists image ids (there is none here)"
            )
        thresholds = np.atleast_1d(np.asarray(self.iou_thrs, np.float64))
        if not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
            raise MetricConfigError(f"iou_thrs={self.iou_thrs}: expected values above 0 and up to 1")
        if not self.proposal_nums or min(self.proposal_nums) < 1:
            raise MetricConfigError(f"proposal_nums={self.proposal_nums}: expected numbers of detections from 1 on")
        if self.ann_file is not None and self.backend_args is None and not os.path.exists(self.ann_file):
            raise AnnotationFileError(f"ann_file {self.ann_file} does not exist (working directory: {os.getcwd()})")


def refuse_file_client(file_client_args: dict[str, Any] | None) -> None:
    """The stock metrics have this key and raise a RuntimeError for it; so does this error."""
    if file_client_args is not None:
        raise RemovedKeyError("file_client_args is not supported any more; use backend_args, as in MMDetection 3")


def _count_images(dataset: dict[str, Any]) -> int:
    return len({image["id"] for image in dataset["images"]})
