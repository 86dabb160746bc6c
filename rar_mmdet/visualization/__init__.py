"""Drawing through MMDetection's own means; importing this package registers the visualizer."""

import rar_mmdet.registry  # noqa: F401  # first: it checks that MMDetection can be used here
from rar_mmdet.visualization.local_visualizer import RecognitionVisualizer

__all__ = ["RecognitionVisualizer"]
