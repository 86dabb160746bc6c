"""What a config needs on disk, looked at before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.fileio import join_path
from mmengine.utils import is_abs

from rar_mmdet.components import build_component, find_recognizers

__all__ = ["missing_assets"]


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


def _missing_of_recognizer(recognizer: Mapping, where: str) -> Iterator[str]:
    for part in ("encoder", "memory", "ranker"):
        if not recognizer.get(part):
            continue
        component = build_component(recognizer[part], f"{where}.{part}")
        for asset in getattr(component, "missing_assets", list)():
            yield f"{where}.{part}: {asset}"


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
    checkpoint = config.get("load_from")
    if checkpoint and _is_local(checkpoint) and not os.path.isfile(checkpoint):
        lines.append(f"checkpoint: {checkpoint} (looked for in {os.getcwd()})")
    recognizers = list(find_recognizers(config.get("model", {})))
    for where, recognizer in recognizers:
        lines += _missing_vocabulary(recognizer, where)
    if lines:  # what encoder and ranker miss they explain themselves
        lines += [f"how to get it: {line}" for line in config.get("how_to_get", [])]
    for where, recognizer in recognizers:
        lines += _missing_of_recognizer(recognizer, where)
    return list(dict.fromkeys(lines))
