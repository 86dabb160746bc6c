"""`SparseLVISMetric`: takes the place of MMDetection's `LVISMetric`, without lvis-api."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger

from rar_mmdet.errors import MetricConfigError
from rar_mmdet.evaluation.sparse_metric import SparseMetric, refuse_file_client
from rar_mmdet.registry import METRICS
from rar_mmdet.scoring.annotations import Detections, GroundTruth
from rar_mmdet.scoring.protocols import FIXED_SUFFIX, note_on_limit
from rar_mmdet.scoring.settings import LVIS, LVIS_FIXED, Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult, evaluate
from rar_mmdet.scoring.summaries import lvis_recalls, lvis_summary

__all__ = ["SparseLVISMetric"]


@METRICS.register_module()
class SparseLVISMetric(SparseMetric):
    """LVIS metric with the numbers of lvis-api 0.5.3, from the (image, category) pairs that exist.

    Same config keys and result keys as MMDetection's `LVISMetric`. With `classes` that are some of the file's
    categories, the numbers are lvis-api's over these alone.

    Args:
        ann_file: Annotation file in LVIS style: negative categories and frequencies stand only there.
        metric: One or more of 'bbox', 'segm', 'proposal', 'proposal_fast'. 'proposal' is class-agnostic recall of the
            300 best boxes; the stock metric sets attributes that lvis-api does not have there, and reports class-aware
            recall under the same names.
        classwise: Report the AP of every category too.
        proposal_nums: Limits of 'proposal_fast'; lvis-api's own limit, 300 in an image, is fixed.
        iou_thrs: IoU thresholds of 'proposal_fast'; lvis-api's own, 0.5 to 0.95, are fixed.
        metric_items: Names to report.
        format_only: Only write the result files.
        outfile_prefix: Where to write `.bbox.json` and `.segm.json`; None: nowhere.
        collect_device: 'cpu' or 'gpu'.
        prefix: Put before the names of the numbers.
        file_client_args: Not supported, as in MMDet.
        backend_args: For reading `ann_file`.
        img_ids: 'all' scores every image of the annotations, as MMDet does; 'seen' only those that were tested; a file
            those it lists (see `read_image_ids`; LVIS minival). `images_scored` then says how many.
        digits: Decimals of the numbers, 3 as in MMDet; None gives all.
        fixed_ap: Report fixed AP (`..._fixed`: the 10,000 best detections of a category over the set, no limit per
            image) beside lvis-api's numbers; the detector should then emit more than 300 an image.

    Raises:
        MetricNameError: A name in `metric` or `metric_items` does not exist.
        MetricConfigError: Values contradict one another, or ann_file is missing.
    """

    default_prefix: ClassVar[str | None] = "lvis"
    is_federated: ClassVar[bool] = True
    labels_all_categories: ClassVar[bool] = True
    items: ClassVar[tuple[str, ...]] = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    recall_items: ClassVar[tuple[str, ...]] = ("AR@300", "ARs@300", "ARm@300", "ARl@300")

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
        collect_device: str = "cpu",
        prefix: str | None = None,
        file_client_args: dict[str, Any] | None = None,
        backend_args: dict[str, Any] | None = None,
        img_ids: str = "all",
        digits: int | None = 3,
        fixed_ap: bool = False,
    ) -> None:
        refuse_file_client(file_client_args)
        if ann_file is None:
            raise MetricConfigError(
                "SparseLVISMetric needs ann_file: neg_category_ids and frequencies stand only there"
            )
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
        self.fixed_ap = fixed_ap

    @cached_property
    def _lvis_api(self) -> Any:
        """The stock metric's LVIS object, for code that was written for it; this metric itself does not need it."""
        import lvis

        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            return lvis.LVIS(path)

    def protocol_of(self, name: str) -> Protocol:
        """lvis-api's rules, whose thresholds and limit are fixed."""
        return LVIS.having(
            iou_type="segm" if name == "segm" else "bbox",
            use_categories=name != "proposal",
            federated=name != "proposal",
        )

    def further_numbers(
        self, name: str, truth: GroundTruth, detections: Detections, result: SparseResult
    ) -> dict[str, float]:
        """Fixed AP, where it is asked for."""
        if not self.fixed_ap or name == "proposal":
            return {}
        fixed = evaluate(truth, detections, LVIS_FIXED.having(iou_type="segm" if name == "segm" else "bbox"))
        for note in note_on_limit(detections):
            MMLogger.get_current_instance().warning(note)
        return self.report(name, lvis_summary(fixed, truth), FIXED_SUFFIX)

    def summarise(self, name: str, result: SparseResult, truth: GroundTruth) -> dict[str, float]:
        """The numbers of lvis-api under its names."""
        return lvis_recalls(result) if name == "proposal" else lvis_summary(result, truth)
