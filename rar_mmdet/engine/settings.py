"""What the test command's options change in a config."""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from rar_mmdet import registry
from rar_mmdet.components import asks_a_model
from rar_mmdet.datasets.vocabulary_datasets import VocabularyDataset
from rar_mmdet.engine.preflight import inner_dataset
from rar_mmdet.errors import ConfigError

__all__ = [
    "add_test_time_augmentation",
    "allow_unreadable",
    "keep_answers",
    "score_seen_images",
    "show_progress",
    "write_records",
    "write_results",
]

_RESULTS = ".bbox.json"  # what MMDetection's metrics add to a prefix

# One view beside the image itself, and MMDetection's usual merging.
_FLIPS = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
_TTA_MODEL = {
    "type": "rar_mmdet.RecognitionTTAModel",
    "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 300},
}


def keep_answers(model: Any, path: str | None) -> None:
    """Give every ranker that asks a model its file of answers; one named in the config stays, unless `path` is None."""
    for key, value in model.items() if isinstance(model, dict) else ():
        keep_answers(value, path)
        if key == "ranker" and asks_a_model(value) and (path is None or "cache" not in value):
            value.cache = path


def limit_cost(model: Any, budget: float) -> int:
    """Give every ranker that asks servers a budget, in place of the config's; how many there are."""
    count = 0
    for key, value in model.items() if isinstance(model, dict) else ():
        count += limit_cost(value, budget)
        if key == "ranker" and asks_a_model(value) and "base_url" in value:
            value.server = {**(value.get("server") or {}), "budget": budget}
            count += 1
    return count


def add_test_time_augmentation(config: Config) -> None:
    """As MMDetection's tool does, but keeping the config's own packing step and number of detections."""
    if "tta_model" not in config:
        config.tta_model = deepcopy(_TTA_MODEL)
    dataset = inner_dataset(config)
    if "tta_pipeline" not in config:
        *steps, pack = deepcopy(dataset.pipeline)
        config.tta_pipeline = [*steps, {"type": "TestTimeAug", "transforms": [deepcopy(_FLIPS), [pack]]}]
    config.model = ConfigDict(**config.tta_model, module=config.model)
    dataset.pipeline = config.tta_pipeline


def score_seen_images(config: Config) -> list[str]:
    """Let metrics score the images of a subset alone, where they can.

    Returns:
        The types of the metrics that score all images of the annotation file all the same.
    """
    stubborn = []
    evaluators = config.get("test_evaluator") or []
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        kind = registry.METRICS.get(metric["type"]) if isinstance(metric["type"], str) else metric["type"]
        parameters = inspect.signature(kind).parameters if kind is not None else {}
        if "img_ids" in parameters:
            metric["img_ids"] = "seen"
        elif "ann_file" in parameters and not str(metric["type"]).endswith("RecognitionMetric"):
            stubborn.append(str(metric["type"]))
    return stubborn


def allow_unreadable(config: Config, number: int) -> None:
    """Let a data set of this project leave so many photos that cannot be read without detections."""
    dataset = inner_dataset(config)
    kind = registry.DATASETS.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    if isinstance(kind, type) and issubclass(kind, VocabularyDataset):
        dataset.setdefault("max_unreadable", number)


def show_progress(config: Config) -> None:
    """Add the bar."""
    config.custom_hooks = [*(config.get("custom_hooks") or []), {"type": "rar_mmdet.ProgressHook"}]


def write_results(config: Config, path: str) -> None:
    """Let the first metric that scores boxes write its detections to `path`, as `rar-mmdet score` reads them.

    Raises:
        ConfigError: the name does not end in .bbox.json, or no metric can write results.
    """
    if not path.endswith(_RESULTS):
        raise ConfigError(f"--results {path} must end in {_RESULTS}, such as {path.removesuffix('.json')}{_RESULTS}")
    evaluators = config.get("test_evaluator") or []
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        kind = registry.METRICS.get(metric["type"]) if isinstance(metric["type"], str) else metric["type"]
        keys = inspect.signature(kind).parameters if kind is not None else {}
        if {"outfile_prefix", "format_only"} <= set(keys):
            metric["outfile_prefix"] = path.removesuffix(_RESULTS)
            return
    raise ConfigError("--results: no metric of test_evaluator writes results; add rar_mmdet.SparseCocoMetric to it")


def write_records(config: Config) -> None:
    """Write `regions.jsonl` into the work dir, unless the config has a hook that writes records already."""
    hooks = list(config.get("custom_hooks") or [])
    if not any(hook.get("type") == "rar_mmdet.RegionRecordHook" for hook in hooks if isinstance(hook, dict)):
        hooks.append({"type": "rar_mmdet.RegionRecordHook", "path": str(Path(config.work_dir) / "regions.jsonl")})
    config.custom_hooks = hooks
