"""What a test run shows in the terminal: a bar, tables and warnings. All else goes to the log file alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from tqdm import tqdm

from rar_mmdet.engine.recognition_hook import find_branches
from rar_mmdet.registry import HOOKS
from rar_mmdet.terminal import TerminalFormatter, belongs_in_the_terminal

__all__ = ["ProgressHook", "QuietRunner"]


class QuietRunner(Runner):
    """MMEngine's runner whose environment, config and hook lists stand in the log file alone."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As the runner does; the handler of the terminal lets through what `show` logged, and warnings."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(belongs_in_the_terminal)
                handler.setFormatter(TerminalFormatter())
        return logger


@HOOKS.register_module()
class ProgressHook(Hook):
    """A bar over the images of a test with the regions so far: asked about, answers kept from before, without answer.

    Of this process, times the number of processes. Without a terminal there is no bar.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Start the bar."""
        if is_main_process():
            total = len(runner.test_dataloader.dataset)
            self._bar = tqdm(total=total, unit="image", desc="recognise", disable=None, file=sys.stderr)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Move it on."""
        if self._bar is None or self._bar.disable:
            return
        processes = get_world_size()
        regions = asked = kept = failed = 0
        for branch in find_branches(runner.model):
            regions += branch.recognizer.counts["regions"]
            if branch.recognizer.ranker is not None:
                counts = branch.recognizer.ranker.counts
                asked += counts.get("asked", 0)
                kept += counts.get("cached", 0)
                failed += counts.get("fallback", 0)
        so_far = {"regions": regions * processes}
        if asked or kept:
            so_far |= {"asked": asked * processes, "kept": kept * processes, "no answer": failed * processes}
        self._bar.set_postfix(so_far, refresh=False)
        self._bar.update(min(len(outputs or ()) * processes, self._bar.total - self._bar.n))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
