"""MMDetection's metrics over `rar_mmdet.scoring`; importing this package registers them."""

from rar_mmdet.evaluation.coco_metric import SparseCocoMetric
from rar_mmdet.evaluation.lvis_metric import SparseLVISMetric
from rar_mmdet.evaluation.recognition_metric import RecognitionMetric

__all__ = ["RecognitionMetric", "SparseCocoMetric", "SparseLVISMetric"]
