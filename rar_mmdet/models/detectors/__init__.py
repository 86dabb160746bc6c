"""Detectors; importing this package registers them."""

from rar_mmdet.models.detectors.box_source import BoxSourceDetector
from rar_mmdet.models.detectors.proposal_recognizer import ProposalRecognizer
from rar_mmdet.models.detectors.rar_detector import RARDetector

__all__ = ["BoxSourceDetector", "ProposalRecognizer", "RARDetector"]
