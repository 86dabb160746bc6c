"""A hook that hands the numbers and figures of a test to the visualizer's backends, such as TensorBoard or W&B."""

from __future__ import annotations

import tempfile
from numbers import Real
from pathlib import Path

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from rar_mmdet.engine.record_hook import RegionRecordHook
from rar_mmdet.registry import HOOKS
from rar_mmdet.report import read_run
from rar_mmdet.report.figures import figures_of, write_figure

__all__ = ["ReportHook"]


@HOOKS.register_module()
class ReportHook(Hook):
    """Adds every metric of a test as a scalar, and every figure of its report as an image, to the visualizer.

    The backends of the config's visualizer keep them (`vis_backends`): MMEngine has TensorBoard, Weights & Biases,
    MLflow, ClearML, Neptune, DVCLive, Aim and plain files. Figures are drawn from the records, so there are none where
    the test writes no records.

    Args:
        figures: whether to draw figures.
    """

    priority = "LOW"  # after the records are put together, before the runner closes its backends

    def __init__(self, figures: bool = True) -> None:
        self.figures = figures

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add them, in the main process."""
        if not is_main_process():
            return
        numbers = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, Real)}
        if numbers:
            runner.visualizer.add_scalars(numbers)
        records = next((hook.path for hook in runner.hooks if isinstance(hook, RegionRecordHook)), None)
        if self.figures and records is not None:
            with tempfile.TemporaryDirectory() as folder:
                for figure in figures_of([read_run(records)]):
                    picture = write_figure(figure, Path(folder)).with_suffix(".png")
                    with Image.open(picture) as image:
                        runner.visualizer.add_image(f"report_{figure.name}", np.asarray(image.convert("RGB")))
