"""LVIS, COCO and V3Det scores from the pairs that exist, and what AP hides. Arrays in, numbers out; no MMDetection."""

from rar_mmdet.scoring.annotations import Detections, GroundTruth, load_annotation_file
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.result_files import read_results, write_results
from rar_mmdet.scoring.settings import COCO, LVIS, LVIS_FIXED, V3DET, Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult, evaluate
from rar_mmdet.scoring.summaries import coco_summary, limited_summary, lvis_summary, per_category_ap

__all__ = [
    "COCO",
    "LVIS",
    "LVIS_FIXED",
    "V3DET",
    "CategoryTree",
    "Detections",
    "GroundTruth",
    "Protocol",
    "SparseResult",
    "coco_summary",
    "evaluate",
    "limited_summary",
    "load_annotation_file",
    "lvis_summary",
    "per_category_ap",
    "read_results",
    "write_results",
]
