"""A hook that checks the vocabulary before a test and reports what the recogniser did after it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from rar_mmdet.datasets.vocabulary_datasets import VocabularyDataset
from rar_mmdet.files.names import counted, shown
from rar_mmdet.files.vocabulary import check_same_vocabulary
from rar_mmdet.models.recognition_branch import RecognitionBranch
from rar_mmdet.rankers import report_table
from rar_mmdet.rankers.asking import COUNTS
from rar_mmdet.regions.boxes import find_suspicious_boxes
from rar_mmdet.registry import HOOKS
from rar_mmdet.terminal import show

__all__ = ["RecognitionHook", "collect_reports", "collect_unreadable", "find_branches", "judge_rankers"]

_IMAGES_TO_LOOK_AT = 2000  # enough to see what is wrong with the boxes of a file


def find_branches(model: nn.Module) -> Iterator[RecognitionBranch]:
    """The recognition branches inside a model, wherever they sit."""
    for module in model.modules():
        branch = module.__dict__.get("branch")
        if isinstance(branch, RecognitionBranch):
            yield branch


def _add_up(reports: Sequence[Mapping[str, Any]], counts: Collection[str] | None = None) -> dict[str, Any]:
    """Sum the named counts (`None`: all) over processes, which ran side by side; of the rest keep the first."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for report in reports for key in report):
        values = [report[key] for report in reports if key in report]
        if isinstance(values[0], Mapping):
            merged[key] = _add_up(values, None if key == "cost" else COUNTS)
        elif key == "seconds":
            merged[key] = max(values)
        else:
            merged[key] = sum(values) if counts is None or key in counts else values[0]
    return merged


def collect_reports(model: nn.Module) -> dict[str, Any]:
    """The recognizers' reports, counts added up over all processes; call it in every process."""
    own = [branch.recognizer.report(judge=False) for branch in find_branches(model)]
    reports = [report for rank in all_gather_object(own) for report in rank]
    return _add_up(reports)


def collect_unreadable(model: nn.Module) -> dict[Any, str]:
    """Ids of the images that could not be read, and why, of all processes; call it in every process."""
    own = {image: why for branch in find_branches(model) for image, why in branch.unreadable.items()}
    return {image: why for rank in all_gather_object(own) for image, why in rank.items()}


def judge_rankers(model: nn.Module) -> None:
    """Refuse the results of rankers with too many unusable answers; all processes come to the same verdict.

    Call it in every process, also in one that had no image.

    Raises:
        RankerError: see `Ranker.judge`.
    """
    for branch in find_branches(model):
        ranker = branch.recognizer.ranker
        if ranker is not None:
            ranker.judge(sum((Counter(counts) for counts in all_gather_object(dict(ranker.counts))), Counter()))


def report_lines(report: Mapping[str, Any]) -> str:
    """The report for people: counts in one line, and the ranker's small table."""
    counts = [f"{value:,} {key}" for key, value in report.items() if isinstance(value, int)]
    lines = ["recognised: " + ", ".join(counts)]
    if report.get("ranker"):
        lines.append(report_table(report["ranker"]))
    return "\n".join(lines)


@HOOKS.register_module()
class RecognitionHook(Hook):
    """Before a test: the vocabulary must be the dataset's. After it: one log line with counts and failures.

    `seconds_per_image` is the wall time of this process per image, without the first batch, in which models load.
    """

    def __init__(self) -> None:
        self.seconds_per_image: float | None = None
        self._start: float | None = None
        self._num_images = 0
        self._boxes: list[np.ndarray] = []
        self._image_hws: list[tuple[int, int]] = []

    def before_test_epoch(self, runner: Runner) -> None:
        """Compare vocabulary and dataset."""
        classes = getattr(runner.test_dataloader.dataset, "metainfo", {}).get("classes")
        for branch in find_branches(runner.model):
            recognizer = branch.recognizer
            check_same_vocabulary(recognizer.category_names, classes)
            runner.logger.info(
                f"RAR: {len(recognizer.category_names)} categories, shortlist of {recognizer.shortlist_depth}, "
                f"ranker {type(recognizer.ranker).__name__ if recognizer.ranker else 'none'}, "
                f"{recognizer.fusion}, {recognizer.emission}"
            )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keep the time, and boxes of the first images to look at."""
        now = time.perf_counter()
        for sample in (outputs or ()) if len(self._boxes) < _IMAGES_TO_LOOK_AT else ():
            recognition, hw = sample.get("recognition"), sample.metainfo.get("ori_shape")
            if recognition is not None and hw is not None:
                self._boxes.append(recognition.bboxes.numpy())
                self._image_hws.append((int(hw[0]), int(hw[1])))
        if self._start is None:
            self._start = now
            return
        self._num_images += len(outputs or ())
        self.seconds_per_image = (now - self._start) / max(self._num_images, 1)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log the counts of all processes; a ranker with too many unusable replies ends the run here.

        Here and not after the last image: a process without images has none, and would leave the others waiting.
        """
        report = collect_reports(runner.model)
        if report:
            runner.logger.info(f"RAR report: {json.dumps(report, default=str)}")
            show(runner.logger, report_lines(report))
        unreadable = collect_unreadable(runner.model)
        if unreadable:
            runner.logger.warning(
                f"{counted(len(unreadable), 'image')} could not be read and have no detections; their objects count as "
                f"missed: {shown(list(unreadable.values()), '; ')}"
            )
        if report.get("images") and not report.get("regions"):
            runner.logger.warning(
                "no region was recognised in the whole run, so every number is about nothing. Are there boxes: in the "
                "annotation or proposal file (in pixels, at least 1 px wide), or from the detector (was its checkpoint "
                "loaded)?"
            )
        elif any(map(len, self._boxes)) and not _were_annotations_looked_at(runner):
            for sentence in find_suspicious_boxes(self._boxes, self._image_hws):
                runner.logger.warning(f"boxes that were recognised: {sentence}")
        judge_rankers(runner.model)


def _were_annotations_looked_at(runner: Runner) -> bool:
    """Whether this project's dataset has looked at the very boxes while it read them."""
    dataset = runner.test_dataloader.dataset
    return isinstance(dataset, VocabularyDataset) and dataset.proposal_file is None
