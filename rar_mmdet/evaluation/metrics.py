"""`SparseCocoMetric` and `SparseLVISMetric`: drop-in for MMDet's `CocoMetric` and `LVISMetric`.

Same config keys, same result keys, same numbers; memory grows with detections instead of images times categories.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from rar_mmdet.errors import AnnotationFileError, DetectionError, MetricConfigError
from rar_mmdet.evaluation.image_records import ImageRecord, as_detections, check_labels, json_records, record_image
from rar_mmdet.evaluation.proposal_recall import proposal_recall
from rar_mmdet.registry import METRICS
from rar_mmdet.scoring.annotations import Detections, GroundTruth, load_annotation_file
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.result_files import write_results
from rar_mmdet.scoring.settings import COCO, LVIS, Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult, evaluate
from rar_mmdet.scoring.summaries import coco_summary, limited_summary, lvis_summary, per_category_ap

__all__ = ["DetectionError", "SparseCocoMetric", "SparseLVISMetric"]

METRIC_NAMES = ("bbox", "segm", "proposal", "proposal_fast")
# Where MMDet's CocoMetric finds its names among the twelve numbers of COCOeval (mmdet 3.3.0, coco_metric.py).
COCO_ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
LVIS_ITEMS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
LVIS_RECALL_ITEMS = ("AR@300", "ARs@300", "ARm@300", "ARl@300")
COCO_RECALL_ITEMS = ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")


@METRICS.register_module()
class SparseCocoMetric(BaseMetric):
    """COCO metric that visits only (image, category) pairs with detections or annotations.

    Args:
        ann_file: Annotation file; None takes the annotations of the data samples.
        metric: One or more of 'bbox', 'segm', 'proposal', 'proposal_fast'.
        classwise: Report the AP of every category too.
        proposal_nums: Detections kept per image and category. As in MMDet, three limits are summarised as pycocotools
            does (`bbox_mAP` at 100, the rest at the largest), any other number at the largest (V3Det: `[300]`).
        iou_thrs: IoU thresholds; 0.5 to 0.95 by default.
        metric_items: Names to report.
        format_only: Only write the result files.
        outfile_prefix: Where to write them; None writes none.
        file_client_args: Not supported, as in MMDet.
        backend_args: For reading `ann_file`.
        collect_device: 'cpu' or 'gpu'.
        prefix: Put before the names of the numbers.
        sort_categories: Labels follow the sorted category ids (Objects365 v1).
        use_mp_eval: Summarise at the largest limit, as MMDet's multi-process evaluator; it needs no processes here.
        img_ids: 'all' scores every image of the annotations, as MMDet does; 'seen' only those that were tested.
        category_tree: V3Det's tree file, or a JSON dictionary {child: parent}; adds `…_tree` numbers of V3Det's
            second protocol.
        digits: Decimals of the numbers, 3 as in MMDet; None gives all.
    """

    default_prefix: ClassVar[str | None] = "coco"
    protocol: ClassVar[Protocol] = COCO

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = "bbox",
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        file_client_args: dict[str, Any] | None = None,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        sort_categories: bool = False,
        use_mp_eval: bool = False,
        img_ids: Literal["all", "seen"] = "all",
        category_tree: str | None = None,
        digits: int | None = 3,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.metrics = list(metric) if isinstance(metric, (list, tuple)) else [metric]
        for name in self.metrics:
            if name not in METRIC_NAMES:
                raise KeyError(f"metric should be one of {', '.join(map(repr, METRIC_NAMES))}, but got {name}.")
        if format_only and outfile_prefix is None:
            raise MetricConfigError(
                "format_only=True only writes result files: say where with outfile_prefix='a/b/name'"
            )
        if file_client_args is not None:
            raise RuntimeError("file_client_args is not supported any more; use backend_args, as in MMDet 3")
        if img_ids not in ("all", "seen"):
            raise MetricConfigError(f"img_ids={img_ids!r}: say 'all' or 'seen'")
        self.ann_file, self.backend_args = ann_file, backend_args
        if ann_file is not None and backend_args is None and not os.path.exists(ann_file):
            raise AnnotationFileError(f"ann_file {ann_file} does not exist (working directory: {os.getcwd()})")
        self.classwise, self.metric_items = classwise, metric_items
        self.proposal_nums = list(proposal_nums)
        self.iou_thrs = COCO.iou_thrs if iou_thrs is None else np.atleast_1d(np.asarray(iou_thrs, np.float64))
        self.format_only, self.outfile_prefix = format_only, outfile_prefix
        self.sort_categories, self.use_mp_eval = sort_categories, use_mp_eval
        self.img_ids, self.category_tree, self.digits = img_ids, category_tree, digits
        self._check_items()

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the predictions of a batch as arrays.

        Raises:
            DetectionError: A score or box is NaN or infinite.
        """
        keep_masks = "segm" in self.metrics or self.outfile_prefix is not None
        for sample in data_samples:
            truth = _truth_of(sample) if self.ann_file is None else None
            self.results.append(record_image(sample, keep_masks=keep_masks, truth=truth))

    def compute_metrics(self, results: list[ImageRecord]) -> dict[str, float]:
        """Score what was kept; see the class for the keys."""
        logger = MMLogger.get_current_instance()
        records = list({record.img_id: record for record in reversed(results)}.values())[::-1]
        if len(records) < len(results):
            logger.warning(f"{len(results) - len(records)} repeated images were scored once")
        dataset = self._dataset(records)
        label_ids = self._category_ids(dataset)
        check_labels(records, len(label_ids))
        if self.outfile_prefix is not None:
            self._write_files(records, label_ids)
        numbers: dict[str, float] = OrderedDict()
        if self.format_only:
            logger.info(f"results are saved in {os.path.dirname(self.outfile_prefix or '')}")
            return numbers
        seen = [record.img_id for record in records]
        self._say_coverage(len(seen), len({image["id"] for image in dataset["images"]}), logger)
        for name in self.metrics:
            truth = GroundTruth.from_dataset(
                dataset,
                federated=self.protocol.federated,
                image_ids=seen if self.img_ids == "seen" else None,
                category_ids=label_ids,
                keep_segmentations=name == "segm",
            )
            logger.info(f"Evaluating {name}...")
            if name == "proposal_fast":
                numbers.update(self._proposal_fast(records, truth, logger))
            else:
                detections = as_detections(
                    records, label_ids, masks=name == "segm", mask_area=not self.protocol.federated
                )
                numbers.update(self._score(name, truth, detections, label_ids, logger))
        return numbers

    def _score(
        self, name: str, truth: GroundTruth, detections: Detections, label_ids: list[Any], logger: MMLogger
    ) -> dict[str, float]:
        """The numbers of one metric."""
        numbers: dict[str, float] = OrderedDict()
        protocol = self._protocol(name)
        result = evaluate(truth, detections, protocol)
        if result.matches.dropped:
            logger.info(f"detections left out, as in the reference API: {result.matches.dropped}")
        if self.classwise and name != "proposal":
            numbers.update(self._classwise(result, truth, label_ids, logger))
        summary = self._summary(result, truth)
        self._report(numbers, name, summary, "")
        if self.category_tree is not None and name != "proposal":
            tree = CategoryTree.load(self.category_tree, truth.category_names, truth.category_ids.tolist())
            self._report(numbers, name, self._summary(evaluate(truth, detections, protocol, tree), truth), "_tree")
        rows = [["number", "value"], *([key, f"{value:.3f}"] for key, value in summary.items())]
        logger.info(f"{name}\n" + AsciiTable(rows).table)
        return numbers

    # What differs between COCO and LVIS.

    def _protocol(self, name: str) -> Protocol:
        return self.protocol.having(
            iou_type="segm" if name == "segm" else "bbox",
            max_dets=tuple(self.proposal_nums),
            iou_thrs=self.iou_thrs,
            use_categories=name != "proposal",
        )

    def _category_ids(self, dataset: dict[str, Any]) -> list[Any]:
        """Category id of each label: categories named in the dataset's classes, in the order of the file."""
        assert self.dataset_meta is not None, "the runner sets dataset_meta before it evaluates"
        classes = set(self.dataset_meta["classes"])
        ids = [c["id"] for c in dataset["categories"] if c["name"] in classes]
        if not ids:
            raise AnnotationFileError(
                f"none of the {len(classes)} classes of the dataset (such as {sorted(classes)[:3]}) is a category of "
                f"{self.ann_file}; metainfo and ann_file do not belong together"
            )
        return sorted(ids) if self.sort_categories else ids

    def _check_items(self) -> None:
        for item in self.metric_items or ():
            if item not in COCO_ITEMS + COCO_RECALL_ITEMS:
                raise KeyError(f'metric item "{item}" is not supported; known: {COCO_ITEMS + COCO_RECALL_ITEMS}')

    def _summary(self, result: SparseResult, truth: GroundTruth) -> dict[str, float]:
        if len(result.protocol.max_dets) == 3 and not self.use_mp_eval:
            return dict(zip(COCO_ITEMS + COCO_RECALL_ITEMS, coco_summary(result), strict=True))
        numbers = limited_summary(result)
        recalls = {
            key.replace("ARs", "AR_s").replace("ARm", "AR_m").replace("ARl", "AR_l"): value
            for key, value in numbers.items()
            if key.startswith("AR")
        }
        return dict(zip(COCO_ITEMS, numbers.values(), strict=False)) | recalls

    def _report(self, numbers: dict[str, float], name: str, summary: dict[str, float], suffix: str) -> None:
        """Add the chosen items under MMDet's names."""
        for item in self._default_items(name) if self.metric_items is None else self.metric_items:
            if item not in summary:
                raise MetricConfigError(
                    f"{item} is not measured with proposal_nums={self.proposal_nums}: {list(summary)}"
                )
            key = item if name == "proposal" else f"{name}_{item}"
            numbers[key + suffix] = self._rounded(summary[item])

    def _default_items(self, name: str) -> Sequence[str]:
        return COCO_RECALL_ITEMS if name == "proposal" else COCO_ITEMS

    # Shared parts.

    def _rounded(self, value: float) -> float:
        return float(value) if self.digits is None else float(f"{value:.{self.digits}f}")

    def _say_coverage(self, num_seen: int, num_images: int, logger: MMLogger) -> None:
        if num_seen < num_images and self.img_ids == "all":
            logger.warning(
                f"{num_seen} of the {num_images} images of {self.ann_file} were tested, and the numbers are over all "
                f"{num_images}: every object of the other {num_images - num_seen} counts as missed. For a subset, set "
                "img_ids='seen' (--cfg-options test_evaluator.img_ids=seen)."
            )

    def _classwise(
        self, result: SparseResult, truth: GroundTruth, label_ids: list[Any], logger: MMLogger
    ) -> dict[str, float]:
        names = dict(zip(truth.category_ids.tolist(), truth.category_names, strict=True))
        values = dict(zip(truth.category_ids.tolist(), per_category_ap(result).tolist(), strict=True))
        rows = [["category", "AP"], *([names[i], f"{values[i]:.3f}"] for i in label_ids)]
        logger.info("\n" + AsciiTable(rows).table)
        digits = self.digits if self.digits is not None else 17
        return {f"{names[i]}_precision": round(values[i], digits) for i in label_ids}

    def _proposal_fast(self, records: list[ImageRecord], truth: GroundTruth, logger: MMLogger) -> dict[str, float]:
        boxes = {record.img_id: record.boxes_xyxy for record in records}
        recall = proposal_recall(truth, boxes, self.proposal_nums, self.iou_thrs)
        logger.info(", ".join(f"AR@{n} {r:.4f}" for n, r in zip(self.proposal_nums, recall, strict=True)))
        return {f"AR@{n}": float(r) for n, r in zip(self.proposal_nums, recall, strict=True)}

    def _dataset(self, records: list[ImageRecord]) -> dict[str, Any]:
        """The annotation dictionary, from the file or from the data samples."""
        if self.ann_file is None:
            assert self.dataset_meta is not None, "the runner sets dataset_meta before it evaluates"
            categories = [{"id": i, "name": name} for i, name in enumerate(self.dataset_meta["classes"])]
            images = [record.truth for record in records if record.truth is not None]
            annotations = [a for image in images for a in image["annotations"]]
            for i, annotation in enumerate(annotations):
                annotation["id"] = i + 1  # 0 would count as no match
            return {"images": images, "categories": categories, "annotations": annotations}
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            return load_annotation_file(path, keep_segmentations="segm" in self.metrics)

    def _write_files(self, records: list[ImageRecord], label_ids: list[Any]) -> None:
        """`prefix.bbox.json` and, with masks, `prefix.segm.json`, as MMDet writes them."""
        directory = os.path.dirname(self.outfile_prefix or "")
        if directory:
            os.makedirs(directory, exist_ok=True)
        write_results(f"{self.outfile_prefix}.bbox.json", json_records(records, label_ids, masks=False))
        if any(record.masks is not None for record in records):
            write_results(f"{self.outfile_prefix}.segm.json", json_records(records, label_ids, masks=True))


@METRICS.register_module()
class SparseLVISMetric(SparseCocoMetric):
    """LVIS metric with the numbers of lvis-api 0.5.3; keys as MMDet's `LVISMetric`, see `SparseCocoMetric`.

    `metric='proposal'` is class-agnostic recall of the 300 best boxes; MMDet's stock metric sets attributes that
    lvis-api does not have there and reports class-aware recall under the same names.
    """

    default_prefix: ClassVar[str | None] = "lvis"
    protocol: ClassVar[Protocol] = LVIS

    def _check_items(self) -> None:
        if self.ann_file is None:
            raise MetricConfigError(
                "SparseLVISMetric needs ann_file: neg_category_ids and frequencies stand only there"
            )
        if self.sort_categories or self.use_mp_eval:
            raise MetricConfigError("sort_categories and use_mp_eval are keys of SparseCocoMetric")
        for item in self.metric_items or ():
            if item not in LVIS_ITEMS + LVIS_RECALL_ITEMS:
                raise KeyError(f'metric item "{item}" is not supported; known: {LVIS_ITEMS + LVIS_RECALL_ITEMS}')

    def _protocol(self, name: str) -> Protocol:
        # As in MMDet, iou_thrs and proposal_nums are for proposal_fast only: lvis-api's thresholds and limit are fixed.
        return self.protocol.having(
            iou_type="segm" if name == "segm" else "bbox",
            use_categories=name != "proposal",
            federated=name != "proposal",
        )

    def _category_ids(self, dataset: dict[str, Any]) -> list[Any]:
        return list(dict.fromkeys(c["id"] for c in dataset["categories"]))

    def _summary(self, result: SparseResult, truth: GroundTruth) -> dict[str, float]:
        return lvis_summary(result, truth)

    def _default_items(self, name: str) -> Sequence[str]:
        return LVIS_RECALL_ITEMS if name == "proposal" else LVIS_ITEMS


def _truth_of(sample: dict[str, Any]) -> dict[str, Any]:
    """Image and annotations of a data sample, as an annotation file would hold them."""
    if "instances" not in sample:
        raise MetricConfigError(
            f"image {sample['img_id']} has no `instances`: give ann_file, or pack the annotations into the samples"
        )
    height, width = sample["ori_shape"][:2]
    annotations = []
    for instance in sample["instances"]:
        x1, y1, x2, y2 = instance["bbox"]
        box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
        annotation = {"image_id": sample["img_id"], "bbox": box, "area": box[2] * box[3]}
        annotation |= {"iscrowd": instance.get("ignore_flag", 0), "category_id": int(instance["bbox_label"])}
        if instance.get("mask"):
            annotation["segmentation"] = instance["mask"]
        annotations.append(annotation)
    return {"id": sample["img_id"], "height": height, "width": width, "annotations": annotations}
