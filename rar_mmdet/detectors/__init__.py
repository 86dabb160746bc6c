"""Boxes without MMDetection: transformers' detectors, and the annotation files of any tool."""

from rar_mmdet.detectors.annotation_detector import AnnotationDetector
from rar_mmdet.detectors.annotation_files import BoxFile, read_box_file
from rar_mmdet.detectors.base import Detected, Detector, class_scores, merge_boxes, rows_of_names
from rar_mmdet.detectors.transformers_detector import TransformersDetector

__all__ = [
    "AnnotationDetector",
    "BoxFile",
    "Detected",
    "Detector",
    "TransformersDetector",
    "class_scores",
    "merge_boxes",
    "read_box_file",
    "rows_of_names",
]
