"""Running a test: hooks, what is looked at beforehand, and the command; importing this package registers the hooks."""

import rar_mmdet.registry  # noqa: F401  # first: it checks that MMDetection can be used here
from rar_mmdet.engine.console import ProgressHook
from rar_mmdet.engine.preflight import missing_assets
from rar_mmdet.engine.recognition_hook import RecognitionHook, collect_reports
from rar_mmdet.engine.record_hook import RegionRecordHook
from rar_mmdet.engine.report_hook import ReportHook
from rar_mmdet.engine.visualization_hook import RecognitionVisualizationHook

__all__ = [
    "ProgressHook",
    "RecognitionHook",
    "RecognitionVisualizationHook",
    "RegionRecordHook",
    "ReportHook",
    "collect_reports",
    "missing_assets",
]
