"""Drawing through MMDetection's own means; importing this package registers the visualizer."""

from rar_mmdet.visualization.local_visualizer import RecognitionVisualizer

__all__ = ["RecognitionVisualizer"]
