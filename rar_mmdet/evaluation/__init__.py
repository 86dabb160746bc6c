"""MMDetection's metrics over `rar_mmdet.scoring`; importing this package registers them."""

from rar_mmdet._lvis import patch_lvis
from rar_mmdet.evaluation.metrics import SparseCocoMetric, SparseLVISMetric
from rar_mmdet.evaluation.recognition_metric import RecognitionMetric

__all__ = ["RecognitionMetric", "SparseCocoMetric", "SparseLVISMetric"]

patch_lvis()  # MMDet's stock LVISMetric then runs as well
