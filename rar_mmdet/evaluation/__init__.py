"""Scoring: LVIS, COCO and V3Det from the pairs that exist, and what AP hides."""

from rar_mmdet._lvis import patch_lvis
from rar_mmdet.evaluation.category_tree import CategoryTree, CategoryTreeError
from rar_mmdet.evaluation.image_records import DetectionError
from rar_mmdet.evaluation.metrics import MetricConfigError, SparseCocoMetric, SparseLVISMetric
from rar_mmdet.evaluation.recognition_metric import RecognitionMetric
from rar_mmdet.evaluation.records import AnnotationFileError, Detections, GroundTruth, load_annotation_file
from rar_mmdet.evaluation.result_files import ResultFileError, read_results, write_results
from rar_mmdet.evaluation.settings import COCO, LVIS, V3DET, Protocol
from rar_mmdet.evaluation.sparse_eval import SparseResult, UnknownImageError, evaluate
from rar_mmdet.evaluation.summaries import coco_summary, limited_summary, lvis_summary, per_category_ap

__all__ = [
    "COCO",
    "LVIS",
    "V3DET",
    "AnnotationFileError",
    "CategoryTree",
    "CategoryTreeError",
    "DetectionError",
    "Detections",
    "GroundTruth",
    "MetricConfigError",
    "Protocol",
    "RecognitionMetric",
    "ResultFileError",
    "SparseCocoMetric",
    "SparseLVISMetric",
    "SparseResult",
    "UnknownImageError",
    "coco_summary",
    "evaluate",
    "limited_summary",
    "load_annotation_file",
    "lvis_summary",
    "per_category_ap",
    "read_results",
    "write_results",
]

patch_lvis()  # MMDet's stock LVISMetric then runs as well
