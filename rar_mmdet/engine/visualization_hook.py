"""MMDetection's hook that draws predictions, for runs in which some photos cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.runner import Runner

from rar_mmdet.registry import HOOKS

__all__ = ["RecognitionVisualizationHook"]


@HOOKS.register_module()
class RecognitionVisualizationHook(DetVisualizationHook):
    """`DetVisualizationHook` that passes over images which the dataset could not read: there is nothing to draw on."""

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any]) -> None:
        """Draw the others."""
        readable = [sample for sample in outputs if "unreadable" not in sample.metainfo]
        super().after_test_iter(runner, batch_idx, data_batch, readable)
