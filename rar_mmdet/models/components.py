"""Stage classes in the registry, and a `RegionRecognizer` from a config dict.

Every class that `regions`, `encoders`, `memory`, `rankers` and `fusion` export can be named as `type` in a
recognizer config; a class of yours by its full path (`my_package.MyRanker`) or by registering it in
`rar_mmdet.registry.TASK_UTILS`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from rar_mmdet import encoders, fusion, memory, rankers, regions
from rar_mmdet.emission import Emission
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.registry import TASK_UTILS

__all__ = ["asks_a_model", "build_component", "build_recognizer"]


def _is_component(candidate: object) -> bool:
    return inspect.isclass(candidate) and not getattr(candidate, "_is_protocol", False)


for _package in (regions, encoders, memory, rankers, fusion):
    for _name in _package.__all__:
        if _is_component(getattr(_package, _name)):
            TASK_UTILS.register_module(name=_name, module=getattr(_package, _name), force=True)

# What a part is when its dict names no `type`: parts of which there is one kind only.
_DEFAULT_TYPES = {"cropper": "RegionCropper", "ranker_cropper": "RegionCropper", "emission": "Emission"}


def _plain(value: Any) -> Any:
    """Config containers as dict, list and tuple."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else value


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_keys(target: Any, name: str, given: dict, where: str) -> None:
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in given:
        if key not in parameters:
            raise ConfigError(
                f"{where}: {name} has no key {key!r}{_nearest(key, list(parameters))} Its keys: {', '.join(parameters)}"
            )
    missing = [
        k for k, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and k not in given
    ]
    if missing:
        raise ConfigError(f"{where}: {name} needs the key {missing[0]!r}. Its keys: {', '.join(parameters)}")


def asks_a_model(settings: Any) -> bool:
    """Whether these are settings of a ranker that asks a model: it has a way to ask, a margin and a file of answers."""
    name = settings.get("type") if isinstance(settings, Mapping) else None
    kind = TASK_UTILS.get(name) if isinstance(name, str) else None
    return isinstance(kind, type) and issubclass(kind, rankers.AskingRanker)


def build_component(config: Any, where: str, default_type: str | None = None) -> Any:
    """Build one part from a dict with `type`; dicts with `type` inside it are built first.

    Args:
        config: a dict, or an object that is built already.
        where: the path of the dict in the config, for errors.
        default_type: the class when the dict has no `type`.

    Raises:
        ConfigError: an unknown type, a misspelt or a missing key, or a value the class refuses.
    """
    if not isinstance(config, Mapping):
        return config
    arguments = _plain(config)
    kind = arguments.pop("type", default_type)
    if kind is None:
        raise ConfigError(f"{where} needs the key 'type'")
    target = kind if callable(kind) else TASK_UTILS.get(kind)
    if target is None:
        known = sorted(TASK_UTILS.module_dict)
        raise ConfigError(f"{where}: there is no {kind!r}{_nearest(kind, known)} Known: {', '.join(known)}")
    name = getattr(target, "__name__", str(kind))
    _check_keys(target, name, arguments, where)
    for key, value in arguments.items():
        if isinstance(value, dict) and "type" in value:
            arguments[key] = build_component(value, f"{where}.{key}")
        elif isinstance(value, list | tuple) and any(isinstance(v, dict) and "type" in v for v in value):
            arguments[key] = [build_component(v, f"{where}.{key}[{i}]") for i, v in enumerate(value)]
    try:
        return target(**arguments)
    except RarError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} refuses its values: {error}") from error


def build_recognizer(
    config: Any, where: str = "recognizer", emission: Emission | None = None, backend_args: dict | None = None
) -> RegionRecognizer:
    """A `RegionRecognizer` from its config; nothing is loaded yet, apart from the names of the vocabulary.

    Args:
        config: keys of `RegionRecognizer`, each part a dict with `type`; `vocabulary` (a names file, an annotation
            file or a list, see `read_vocabulary`) in place of `category_names`.
        where: the path of the dict in the config, for errors.
        emission: the emission of this model when the config has none.
        backend_args: MMEngine file backend of the vocabulary.
    """
    if isinstance(config, RegionRecognizer):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where} must be a dict with the keys of RegionRecognizer, got {type(config).__name__}")
    arguments = _plain(config)
    if "vocabulary" not in arguments:
        raise ConfigError(f"{where} needs the key 'vocabulary': a names file, an annotation file or a list of names")
    vocabulary = arguments.pop("vocabulary")
    arguments["category_names"] = []
    _check_keys(RegionRecognizer, "RegionRecognizer", arguments, where)
    for key, value in arguments.items():
        if isinstance(value, dict):
            arguments[key] = build_component(value, f"{where}.{key}", default_type=_DEFAULT_TYPES.get(key))
    arguments["category_names"] = read_vocabulary(vocabulary, backend_args)
    if arguments.get("emission") is None:
        arguments["emission"] = emission
    try:
        return RegionRecognizer(**arguments)
    except ValueError as error:
        raise error if isinstance(error, RarError) else ConfigError(f"{where}: {error}") from error
