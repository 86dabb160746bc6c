"""Parts by name: a `RegionRecognizer`, or any part of it, from a config dict. Needs no MMDetection.

Every class that `regions`, `encoders`, `memory`, `rankers`, `fusion`, `emission` and `detectors` export can be named as
`type`; `Encoder` with `preset` is a published encoder by name; a class of yours by its full path
(`my_package.MyRanker`), or by its name after `register(MyRanker)`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rar_mmdet import detectors, emission, encoders, fusion, memory, rankers, regions
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.recognizer import RegionRecognizer

__all__ = [
    "add_lookup",
    "asks_a_model",
    "build_component",
    "build_recognizer",
    "check_keys",
    "find_recognizers",
    "nearest",
    "read_config",
    "register",
    "retriever_of",
]


def _exported_classes() -> Iterator[type]:
    for room in (regions, encoders, memory, rankers, fusion, emission, detectors):
        for name in room.__all__:
            candidate = getattr(room, name)
            if inspect.isclass(candidate) and not getattr(candidate, "_is_protocol", False):
                yield candidate


_CLASSES: dict[str, type] = {cls.__name__: cls for cls in _exported_classes()}
# Names of functions that choose the class themselves.
_FACTORIES: dict[str, Callable[..., Any]] = {"Encoder": encoders.encoder_from_preset}
_LOOKUPS: list[Callable[[str], Any]] = []
# What a part is when its dict names no `type`: parts of which there is one usual kind.
_DEFAULT_TYPES = {"cropper": "RegionCropper", "ranker_cropper": "RegionCropper", "emission": "TopPairs"}


def register(cls: type) -> type:
    """Let a config name `cls` by its class name; returns it, so that this serves as a decorator."""
    _CLASSES[cls.__name__] = cls
    return cls


def add_lookup(find: Callable[[str], Any]) -> None:
    """Ask `find(name)` too, which returns a class or `None`; MMDetection's registry is added this way."""
    _LOOKUPS.append(find)


def _by_path(path: str) -> Any:
    """The object at 'package.module.Name'; `None` where there is no such module or name."""
    module, _, name = path.rpartition(".")
    if not module:
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise ConfigError(f"type={path!r}: importing {module} fails, there is no module {error.name!r}") from error


def _find_type(name: str) -> Any:
    short = name.removeprefix("rar_mmdet.")
    if short in _CLASSES:
        return _CLASSES[short]
    if short in _FACTORIES:
        return _FACTORIES[short]
    found = _by_path(name)
    if found is not None:
        return found
    return next((hit for hit in (find(name) for find in _LOOKUPS) if hit is not None), None)


def _plain(value: Any) -> Any:
    """Config containers as dict, list and tuple."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else value


def nearest(word: str, words: list[str]) -> str:
    """The end of a sentence about an unknown word: what may have been meant."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def check_keys(target: Any, name: str, given: Mapping[str, Any], where: str) -> None:
    """Compare the keys of a dict with the arguments of the class it is for.

    Raises:
        ConfigError: one is unknown, or one that has no default is missing.
    """
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key not in parameters and not takes_any:
            raise ConfigError(
                f"{where}: {name} has no key {key!r}{nearest(key, list(parameters))} Its keys: {', '.join(parameters)}"
            )
    missing = [
        k
        for k, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and k not in given
    ]
    if missing:
        raise ConfigError(f"{where}: {name} needs the key {missing[0]!r}. Its keys: {', '.join(parameters)}")


def asks_a_model(settings: Any) -> bool:
    """Whether these are settings of a ranker that asks a model: it has a way to ask, a margin and a file of answers."""
    name = settings.get("type") if isinstance(settings, Mapping) else None
    kind = _find_type(name) if isinstance(name, str) else None
    return isinstance(kind, type) and issubclass(kind, rankers.AskingRanker)


def find_recognizers(config: Any, where: str = "model") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and settings of every `recognizer` in a config, wherever in the model it is."""
    if not isinstance(config, Mapping):
        return
    for key, value in config.items():
        if key == "recognizer" and isinstance(value, Mapping):
            yield f"{where}.{key}", value
        else:
            yield from find_recognizers(value, f"{where}.{key}")


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
    target = kind if callable(kind) else _find_type(kind)
    if target is None:
        known = sorted([*_CLASSES, *_FACTORIES])
        raise ConfigError(f"{where}: there is no {kind!r}{nearest(kind, known)} Known: {', '.join(known)}")
    name = getattr(target, "__name__", str(kind))
    check_keys(target, name, arguments, where)
    for key, value in arguments.items():
        if isinstance(value, dict) and "type" in value:
            arguments[key] = build_component(value, f"{where}.{key}")
        elif isinstance(value, list | tuple) and any(isinstance(v, dict) and "type" in v for v in value):
            arguments[key] = [build_component(v, f"{where}.{key}[{i}]") for i, v in enumerate(value)]
    try:
        return target(**arguments)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error
    except RarError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} refuses its values: {error}") from error


def build_recognizer(
    config: Any, where: str = "recognizer", default_emission: Any = None, backend_args: dict | None = None
) -> RegionRecognizer:
    """A `RegionRecognizer` from its config; nothing is loaded yet, apart from the names of the vocabulary.

    Args:
        config: keys of `RegionRecognizer`, each part a dict with `type`; `vocabulary` (a names file, an annotation
            file or a list, see `read_vocabulary`) in place of `category_names`.
        where: the path of the dict in the config, for errors.
        default_emission: the emission of this model when the config has none.
        backend_args: MMEngine file backend of the vocabulary.

    Raises:
        ConfigError: as `build_component`, or the parts do not fit together.
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
    check_keys(RegionRecognizer, "RegionRecognizer", arguments, where)
    for key, value in arguments.items():
        if isinstance(value, dict):
            arguments[key] = build_component(value, f"{where}.{key}", default_type=_DEFAULT_TYPES.get(key))
    arguments["category_names"] = read_vocabulary(vocabulary, backend_args)
    if arguments.get("emission") is None:
        arguments["emission"] = default_emission
    try:
        return RegionRecognizer(**arguments)
    except ValueError as error:
        raise error if isinstance(error, RarError) else ConfigError(f"{where}: {error}") from error


def recognizer_of(config: str | Path | Mapping[str, Any], vocabulary: Any = None) -> RegionRecognizer:
    """The one recogniser of a config file; see `RegionRecognizer.from_config`."""
    if isinstance(config, str | Path):
        config = read_config(config)
    settings = dict(_settings_of(config)) | ({} if vocabulary is None else {"vocabulary": vocabulary})
    return build_recognizer(settings)


def retriever_of(config: str | Path, options: Sequence[str] = (), vocabulary: Any = None) -> RegionRecognizer:
    """The recogniser of a config file without its ranker, whose weights or server need not be there.

    Args:
        config: the file.
        options: overrides `key=value`, as `--cfg-options` takes them.
        vocabulary: names or a file of names instead of the config's.

    Raises:
        ConfigError: as `recognizer_of`.
    """
    settings = dict(_settings_of(read_config(config, options)))
    return recognizer_of(
        {key: settings[key] for key in settings if key not in ("ranker", "ranker_cropper")}, vocabulary
    )


def _settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the one recogniser of a config."""
    # A whole config also holds the parts of its bases at the top level; a recogniser's dict has no model.
    is_recognizer = "encoder" in config and "model" not in config
    found = [config] if is_recognizer else [settings for _, settings in find_recognizers(config)]
    if len(found) != 1:
        raise ConfigError(f"expected one `recognizer` in the config's model, found {len(found)}")
    return found[0]


def read_config(path: str | Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """A config file of MMEngine's, with overrides `key=value` as `--cfg-options` takes them.

    Raises:
        ConfigError: there is no such file, or an override is none.
    """
    from mmengine.config import Config, DictAction

    if not Path(path).is_file():
        raise ConfigError(f"config {path} does not exist (looked for in {Path.cwd()})")
    odd = [option for option in options if "=" not in option]
    if odd:
        raise ConfigError(f"{odd[0]!r} is no override; write KEY=VALUE, as model.recognizer.num_candidates=3")
    parser = argparse.ArgumentParser()
    parser.add_argument("--overrides", nargs="*", action=DictAction, default={})
    config = Config.fromfile(path)
    try:
        config.merge_from_dict(parser.parse_args(["--overrides", *options]).overrides)
    except (KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f"the overrides {list(options)} do not fit {path}: {error}") from error
    content: dict[str, Any] = config.to_dict()
    return content
