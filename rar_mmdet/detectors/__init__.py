"""Boxes without MMDetection: transformers' detectors, and the annotation files of any tool."""

from rar_mmdet.detectors.annotation_detector import AnnotationDetector
from rar_mmdet.detectors.annotation_files import BoxFile, read_box_file
from rar_mmdet.detectors.base import Detected, Detector, merge_boxes
from rar_mmdet.detectors.transformers_detector import TransformersDetector

__all__ = [
    "AnnotationDetector",
    "BoxFile",
    "Detected",
    "Detector",
    "TransformersDetector",
    "merge_boxes",
    "read_box_file",
]
