"""A hook that writes what a test run knew about each region, one line each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import torch
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmdet.structures import DetDataSample
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from rar_mmdet.datasets.vocabulary_datasets import VocabularyDataset
from rar_mmdet.engine.recognition_hook import find_branches
from rar_mmdet.errors import RarError
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.records import RegionRecord, describe_regions
from rar_mmdet.registry import HOOKS
from rar_mmdet.scoring.recognition import match_truth
from rar_mmdet.structures import Recognition

__all__ = ["RegionRecordHook"]


@dataclass(frozen=True)
class _View:
    """What was heard of one image, once or once for each view of it."""

    recognition: Recognition
    truth: Sequence[int] | None  # annotated label of each region
    file: str | None


@HOOKS.register_module()
class RegionRecordHook(Hook):
    """Streams a `RegionRecord` for every region of a test into a file, in the order of the images.

    Each process writes its own file beside it; the main process puts them together at the end. With test-time
    augmentation the regions of a view that finds the same boxes again are written once.

    Args:
        path: the file, `.jsonl`; written anew by every run, when the run has ended.
    """

    priority = "HIGH"  # records are complete before a ranker's verdict can end the run

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._stream: IO[str] | None = None
        self._knows_truth = True
        self._heard: dict[Any, list[_View]] = {}

    def _part(self, rank: int) -> Path:
        return self.path.with_suffix(f".rank{rank}{self.path.suffix}")

    def before_test_epoch(self, runner: Runner) -> None:
        """Open this process's file and listen to the recognisers."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._part(get_rank()).open("w", encoding="utf-8")
        self._knows_truth = labels_follow_classes(runner.test_dataloader.dataset)
        if not self._knows_truth:
            runner.logger.warning(
                "regions.jsonl is written without truth: this dataset numbers its labels in the order of the file, and "
                "its classes are in another; use rar_mmdet.CocoVocabularyDataset or LVISVocabularyDataset"
            )
        for branch in find_branches(runner.model):
            branch.listeners.append(self._hear)

    def _hear(self, sample: DetDataSample, recognition: Recognition) -> None:
        meta = sample.metainfo
        truth = _truth(sample, recognition) if self._knows_truth else None
        view = _View(recognition, truth, meta.get("img_path"))
        self._heard.setdefault(meta.get("img_id"), []).append(view)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Write the regions of the batch."""
        assert self._stream is not None, "opened before the first batch"
        for image, views in self._heard.items():
            for record in _records(image, views):
                self._stream.write(record.to_json() + "\n")
            if get_world_size() > 1:
                self._stream.write("\n")  # the end of an image, also of one without regions
        self._stream.flush()
        self._heard.clear()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the files of all processes together."""
        assert self._stream is not None, "opened before the test"
        self._stream.close()
        for branch in find_branches(runner.model):
            branch.listeners.remove(self._hear)
        barrier()
        if is_main_process():
            parts = [self._part(rank) for rank in range(get_world_size())]
            absent = [str(part) for part in parts if not part.is_file()]
            if absent:
                runner.logger.warning(
                    f"records of other machines stay there, for this one cannot read {', '.join(absent)}; copy them "
                    "here, or give a --work-dir that all machines share"
                )
            _merge([part for part in parts if part.is_file()], self.path)


def labels_follow_classes(dataset: Any) -> bool:
    """Whether label i of the dataset's objects is its i-th class: true of this project's, not always of MMDetection's.

    MMDetection's COCO datasets number the categories of the file, in its order, whatever the order of `classes`.
    """
    if isinstance(dataset, VocabularyDataset) or not isinstance(dataset, CocoDataset):
        return True
    try:
        names = read_vocabulary(dataset.ann_file, dataset.backend_args)
    except RarError:
        return True  # not a file of categories; nothing is known against it
    classes = list(dataset.metainfo["classes"])
    known = set(classes)
    return [name for name in names if isinstance(dataset, LVISV1Dataset) or name in known] == classes


def _records(image: Any, views: Sequence[_View]) -> Iterator[RegionRecord]:
    """Records of one image; given boxes are the same in every view."""
    boxes = [view.recognition.boxes_xyxy for view in views]
    if all(torch.equal(boxes[0], others) for others in boxes[1:]):
        views = views[:1]
    start = 0
    for view in views:
        for record in describe_regions(view.recognition, image, truth=view.truth, file=view.file):
            yield replace(record, region=record.region + start)
        start += len(view.recognition)


def _truth(sample: DetDataSample, recognition: Recognition) -> Sequence[int] | None:
    """The annotated label of each region, -1 for none; `None` where nothing is known of the annotations."""
    annotated = sample.get("annotated", None)
    if annotated is None:
        return None
    boxes, labels = annotated.bboxes.cpu().numpy(), annotated.labels.cpu().numpy()
    return match_truth(recognition.boxes_xyxy.cpu().numpy(), boxes, labels).tolist()


def _merge(parts: Sequence[Path], target: Path) -> None:
    """One image of each part in turn: the order in which MMEngine's sampler shares out the dataset."""
    if len(parts) == 1:
        os.replace(parts[0], target)
        return
    unfinished = target.with_suffix(".unfinished")
    with ExitStack() as stack:
        images = [_images(stack.enter_context(part.open(encoding="utf-8"))) for part in parts]
        merged = stack.enter_context(unfinished.open("w", encoding="utf-8"))
        for turn in zip_longest(*images, fillvalue=()):
            for lines in turn:
                merged.writelines(lines)
    os.replace(unfinished, target)
    for part in parts:
        part.unlink()


def _images(lines: Iterable[str]) -> Iterator[list[str]]:
    """The records of one image after the other."""
    records: list[str] = []
    for line in lines:
        if line.strip():
            records.append(line)
        else:
            yield records
            records = []
