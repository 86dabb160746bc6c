"""MMDetection's metrics over `rar_mmdet.scoring`; importing this package registers them."""

import rar_mmdet.registry  # noqa: F401  # first: it checks that MMDetection can be used here
from rar_mmdet.evaluation.coco_metric import SparseCocoMetric
from rar_mmdet.evaluation.lvis_metric import SparseLVISMetric
from rar_mmdet.evaluation.recognition_metric import RecognitionMetric

__all__ = ["RecognitionMetric", "SparseCocoMetric", "SparseLVISMetric"]
