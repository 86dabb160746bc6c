"""What can be said of a config before anything is loaded: what is missing on disk, and what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.fileio import join_path
from mmengine.utils import is_abs

from rar_mmdet import registry
from rar_mmdet.components import build_component, build_recognizer, check_keys, find_recognizers, nearest
from rar_mmdet.errors import ConfigError
from rar_mmdet.files.vocabulary import check_same_vocabulary, read_vocabulary

__all__ = ["box_source", "check_config", "check_vocabulary", "inner_dataset", "missing_assets"]

_SCOPE = "rar_mmdet."
_REGISTRIES = (
    registry.MODELS,
    registry.DATASETS,
    registry.TRANSFORMS,
    registry.METRICS,
    registry.HOOKS,
    registry.VISUALIZERS,
)
_BY_HUB_ID = ". Leave it out: this detector has its weights by model.detector.model, a hub id or a folder"
_SECTIONS = ("model", "tta_model", "test_dataloader", "test_evaluator", "custom_hooks", "default_hooks", "visualizer")


def inner_dataset(config: Config) -> Any:
    """The settings of the test dataset, below its wrappers."""
    dataset = config.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def box_source(config: Config) -> str | dict[str, Any]:
    """Where boxes come from: "annotated", a file of proposals, or the detector by its plain settings."""
    dataset = inner_dataset(config)
    steps = {str(step["type"]).rpartition(".")[2] for step in dataset.get("pipeline", ())}
    if "ProposalsFromAnnotations" in steps:
        return "annotated"
    if "LoadProposals" in steps:
        return f"proposals of {dataset.get('proposal_file')}"
    detector = config.model.get("detector", config.model)
    plain = {key: value for key, value in detector.items() if isinstance(value, str | int | float)}
    return {key: value for key, value in plain.items() if not key.startswith("_")}


def check_config(config: Config) -> None:
    """Look for misspelt types and keys of this project.

    MMEngine would find them as well, but after a page of settings and with a traceback.

    Raises:
        ConfigError: a type or key does not exist.
    """
    for registry_of in _REGISTRIES:
        registry_of.import_from_location()
    for section in _SECTIONS:
        for where, settings in _typed(config.get(section), section):
            _check_type(where, settings)


def _typed(value: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Path and settings of each dict with a `type`; parts of a recognizer check themselves."""
    if isinstance(value, Mapping):
        if "type" in value:
            yield where, value
        for key, item in value.items():
            if key != "recognizer":
                yield from _typed(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _typed(item, f"{where}[{index}]")


def _check_type(where: str, settings: Mapping) -> None:
    kind = settings["type"]
    if not isinstance(kind, str) or not kind.startswith(_SCOPE) or kind.count(".") > 1:
        return
    name = kind.removeprefix(_SCOPE)
    known = {key: cls for registry_of in _REGISTRIES for key, cls in registry_of.module_dict.items()}
    if name not in known:
        names = sorted(known)
        raise ConfigError(f"{where}: there is no {kind!r}{nearest(name, names)} Known: {', '.join(names)}")
    check_keys(known[name], name, {key: value for key, value in settings.items() if key != "type"}, where)


def check_vocabulary(config: Config) -> None:
    """Compare the recogniser's names with the dataset's classes before anything is loaded.

    Raises:
        VocabularyError: they differ.
    """
    if "test_dataloader" not in config:
        return
    dataset = inner_dataset(config)
    if not str(dataset.get("type")).endswith("VocabularyDataset") or dataset.get("backend_args"):
        return
    classes = (dataset.get("metainfo") or {}).get("classes") or _under(dataset.get("data_root"), dataset.ann_file)
    for where, recognizer in find_recognizers(config.get("model", {})):
        if "vocabulary" in recognizer:
            names = read_vocabulary(recognizer["vocabulary"])
            check_same_vocabulary(names, read_vocabulary(classes), names_of=f"{where}.vocabulary")


def _is_local(path: str) -> bool:
    return path != "" and "://" not in path


def _under(root: str | None, path: str) -> str:
    return path if is_abs(path) or not root else join_path(root, path)


def _missing_of_dataset(dataset: Mapping) -> Iterator[str]:
    if "dataset" in dataset:  # a wrapper
        yield from _missing_of_dataset(dataset["dataset"])
        return
    if dataset.get("backend_args"):
        return  # not on a local disk; the file backend will say what is missing
    root = dataset.get("data_root")
    for key in ("ann_file", "proposal_file"):
        path = str(dataset.get(key) or "")
        if _is_local(path) and not os.path.isfile(_under(root, path)):
            yield f"{key}: {_under(root, path)} (looked for in {os.getcwd()})"
    for key, path in (dataset.get("data_prefix") or {}).items():
        if isinstance(path, str) and "://" not in path and not os.path.isdir(_under(root, path)):
            yield f"images ({key}): folder {_under(root, path)} (looked for in {os.getcwd()})"


def _missing_vocabulary(recognizer: Mapping, where: str) -> Iterator[str]:
    vocabulary = recognizer.get("vocabulary")
    if isinstance(vocabulary, str) and _is_local(vocabulary) and not os.path.isfile(vocabulary):
        yield f"{where}.vocabulary: {vocabulary} (looked for in {os.getcwd()})"


def _missing_of_recognizer(settings: Mapping, where: str) -> Iterator[str]:
    recognizer = build_recognizer({**settings, "vocabulary": ["the names are looked at elsewhere"]}, where)
    for asset in recognizer.encoder.missing_assets():
        yield f"{where}.encoder: {asset}"
    for asset in recognizer.ranker.missing_assets() if recognizer.ranker is not None else ():
        yield f"{where}.ranker: {asset}"


def missing_assets(config: Config) -> list[str]:
    """One line for each file, folder or weight that a test of this config needs and that is not there.

    Args:
        config: a full config. Its `how_to_get`, a list of lines, is added when data or the checkpoint are missing.

    Raises:
        ConfigError: a recognizer part is misspelt; found on the way.
    """
    lines: list[str] = []
    dataset = config.get("test_dataloader", {}).get("dataset")
    if dataset is not None:
        lines += _missing_of_dataset(dataset)
    model = config.get("model", {})
    detector = model.get("module", model).get("detector")  # a wrapper for test-time augmentation has a module
    source = None
    if isinstance(detector, Mapping) and detector.get("type", "").removeprefix(_SCOPE) == "TransformersDetector":
        source = build_component(detector, "model.detector")
    checkpoint = config.get("load_from")
    if checkpoint and _is_local(checkpoint) and not os.path.isfile(checkpoint):
        lines.append(f"checkpoint: {checkpoint} (looked for in {os.getcwd()}){_BY_HUB_ID if source else ''}")
    recognizers = list(find_recognizers(model))
    for where, recognizer in recognizers:
        lines += _missing_vocabulary(recognizer, where)
    if lines:  # what encoder and ranker miss they explain themselves
        lines += [f"how to get it: {line}" for line in config.get("how_to_get", [])]
    if source is not None:
        lines += [f"model.detector: {asset}" for asset in source.missing_assets()]
    for where, recognizer in recognizers:
        lines += _missing_of_recognizer(recognizer, where)
    return list(dict.fromkeys(lines))
