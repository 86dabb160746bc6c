"""`SparseCocoMetric`: takes the place of MMDetection's `CocoMetric`; V3Det's protocols too."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from mmdet.datasets import api_wrappers
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger

from rar_mmdet.evaluation.image_records import ImageRecord, dataset_of_samples
from rar_mmdet.evaluation.labels import classes_of
from rar_mmdet.evaluation.sparse_metric import SparseMetric, refuse_file_client
from rar_mmdet.files.vocabulary import check_categories
from rar_mmdet.registry import METRICS
from rar_mmdet.scoring.annotations import Detections, GroundTruth
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.settings import COCO, Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult, evaluate
from rar_mmdet.scoring.summaries import coco_summary, limited_summary, novelty_summary

__all__ = ["SparseCocoMetric"]

TREE_SUFFIX = "_tree"


@METRICS.register_module()
class SparseCocoMetric(SparseMetric):
    """COCO metric that visits only (image, category) pairs with detections or annotations.

    Same config keys, result keys and numbers as MMDetection's `CocoMetric`; memory grows with detections instead of
    images times categories.

    Args:
        ann_file: Annotation file; None takes the annotations of the data samples.
        metric: One or more of 'bbox', 'segm', 'proposal', 'proposal_fast'.
        classwise: Report the AP of every category too.
        proposal_nums: Detections kept per image and category. As in MMDet, three limits are summarised as pycocotools
            does (`bbox_mAP` at 100, the rest at the largest), any other number at the largest (V3Det: `[300]`).
        iou_thrs: IoU thresholds; 0.5 to 0.95 by default.
        metric_items: Names to report.
        format_only: Only write the result files.
        outfile_prefix: Where to write `.bbox.json`, `.segm.json` and, without `ann_file`, `.gt.json`; None: nowhere.
        file_client_args: Not supported, as in MMDet.
        backend_args: For reading `ann_file`.
        collect_device: 'cpu' or 'gpu'.
        prefix: Put before the names of the numbers.
        sort_categories: Labels follow the sorted category ids (Objects365 v1).
        use_mp_eval: Summarise at the largest limit, as MMDet's multi-process evaluator; it needs no processes here.
        img_ids: 'all' scores every image of the annotations, as MMDet does; 'seen' only those that were tested; a file
            those it lists (see `read_image_ids`; LVIS minival). `images_scored` then says how many.
        category_tree: V3Det's tree file, or a JSON dictionary {child: parent}; adds `…_tree` numbers of V3Det's
            second protocol.
        digits: Decimals of the numbers, 3 as in MMDet; None gives all.

    Raises:
        MetricNameError: A name in `metric` or `metric_items` does not exist.
        MetricConfigError: Values contradict one another.
    """

    default_prefix: ClassVar[str | None] = "coco"
    is_federated: ClassVar[bool] = False
    labels_all_categories: ClassVar[bool] = False
    # In the order of the twelve numbers of COCOeval, which MMDet names so (mmdet 3.3.0, coco_metric.py).
    items: ClassVar[tuple[str, ...]] = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    recall_items: ClassVar[tuple[str, ...]] = ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = "bbox",
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
        img_ids: str = "all",
        category_tree: str | None = None,
        digits: int | None = 3,
    ) -> None:
        refuse_file_client(file_client_args)
        super().__init__(
            ann_file=ann_file,
            metric=metric,
            classwise=classwise,
            proposal_nums=proposal_nums,
            iou_thrs=iou_thrs,
            metric_items=metric_items,
            format_only=format_only,
            outfile_prefix=outfile_prefix,
            backend_args=backend_args,
            collect_device=collect_device,
            prefix=prefix,
            img_ids=img_ids,
            digits=digits,
        )
        self.sort_categories, self.use_mp_eval, self.category_tree = sort_categories, use_mp_eval, category_tree

    @cached_property
    def _coco_api(self) -> api_wrappers.COCO | None:
        """The stock metric's COCO object, for code that was written for it; this metric itself does not need it."""
        if self.ann_file is None:
            return None
        with (
            get_local_path(self.ann_file, backend_args=self.backend_args) as path,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            return api_wrappers.COCO(path)

    def protocol_of(self, name: str) -> Protocol:
        """COCO's rules with this metric's limits and thresholds."""
        return COCO.having(
            iou_type="segm" if name == "segm" else "bbox",
            max_dets=tuple(self.proposal_nums),
            iou_thrs=np.atleast_1d(np.asarray(self.iou_thrs, np.float64)),
            use_categories=name != "proposal",
        )

    def summarise(self, name: str, result: SparseResult, truth: GroundTruth) -> dict[str, float]:
        """The numbers of COCOeval, or of MMDet's COCOevalMP, under MMDet's names."""
        numbers = self._named(result)
        if name != "proposal":
            values = " ".join(f"{numbers[item]:.3f}" for item in self.items)
            MMLogger.get_current_instance().info(f"{name}_mAP_copypaste: {values}")
        return numbers

    def gt_to_coco_json(self, gt_dicts: Sequence[dict[str, Any]], outfile_prefix: str) -> str:
        """Write annotations of data samples as `outfile_prefix.gt.json`; returns the path.

        Args:
            gt_dicts: One for each image, as in the stock metric: `height`, `width`, `anns` and perhaps `img_id`.
            outfile_prefix: Folder and first part of the name.
        """
        info = {"date_created": str(datetime.datetime.now()), "description": "Annotations of the data samples."}
        dataset = dataset_of_samples(gt_dicts, classes_of(self.dataset_meta))
        os.makedirs(os.path.dirname(outfile_prefix) or ".", exist_ok=True)
        path = f"{outfile_prefix}.gt.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"info": info, "licenses": [], **dataset}, file)
        return path

    def dataset_of(self, records: Sequence[ImageRecord]) -> dict[str, Any]:
        """The annotation dictionary, from the file or from the data samples."""
        if self.ann_file is None:
            truths = [record.truth for record in records if record.truth is not None]
            if self.outfile_prefix is not None:
                self.gt_to_coco_json(truths, self.outfile_prefix)
            return dataset_of_samples(truths, classes_of(self.dataset_meta))
        dataset = super().dataset_of(records)
        if self.sort_categories:
            check_categories(dataset.get("categories"), self.where)
            dataset["categories"] = sorted(dataset["categories"], key=lambda category: category["id"])
        return dataset

    def label_ids_of(self, dataset: dict[str, Any], records: Sequence[ImageRecord]) -> list[Any]:
        """Category id of each label; labels themselves where the annotations are the samples'."""
        if self.ann_file is None:
            return list(range(len(classes_of(self.dataset_meta))))
        return super().label_ids_of(dataset, records)

    def further_numbers(
        self, name: str, truth: GroundTruth, detections: Detections, result: SparseResult
    ) -> dict[str, float]:
        """AP of base and novel categories where the file tells them apart, and V3Det's second protocol given a tree."""
        if name == "proposal":
            return {}
        numbers = self._base_and_novel(name, result, truth)
        if self.category_tree is not None:
            tree = CategoryTree.load(self.category_tree, truth.category_names, truth.category_ids.tolist())
            result = evaluate(truth, detections, self.protocol_of(name), tree)
            numbers |= self.report(name, self._named(result), TREE_SUFFIX)
            numbers |= self._base_and_novel(name, result, truth, TREE_SUFFIX)
        return numbers

    def _base_and_novel(
        self, name: str, result: SparseResult, truth: GroundTruth, suffix: str = ""
    ) -> dict[str, float]:
        summary = novelty_summary(result, truth)
        return self.report(name, summary, suffix, items=summary)

    def _named(self, result: SparseResult) -> dict[str, float]:
        if len(result.protocol.max_dets) == 3 and not self.use_mp_eval:
            return dict(zip(self.items + self.recall_items, coco_summary(result), strict=True))
        numbers = limited_summary(result)
        recalls = {
            key.replace("ARs", "AR_s").replace("ARm", "AR_m").replace("ARl", "AR_l"): value
            for key, value in numbers.items()
            if key.startswith("AR")
        }
        return dict(zip(self.items, numbers.values(), strict=False)) | recalls
