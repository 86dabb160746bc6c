"""Published encoders by name: what builds each, and what is known of it.

One JSON file per family. Facts of open_clip's models are those of its own registry (3.3.0), licences those that timm
(1.0.31) states for the same weights; what neither states is null. Fields of an entry:

- `name`; `type` and `arguments`: the class that loads it and what it is given.
- `image_size`: side in pixels; `dim`: length of the vectors.
- `resize`: how a photo that is not square is made square ("shortest": shorter side and centre crop, "squash": both
  sides, "native": its own aspect); `interpolation`, `mean`, `std` of pixels from 0 to 1.
- `text_length`: tokens of a text; `padding`: "full" where it is part of the text, so that all of `text_length` is
  always encoded, "free" where it has no say; `cleaning` of texts: "lower" case, "canonicalize" (and without
  punctuation) or "whitespace" alone.
- `templates`: a set of `TextMemory` that the authors or open_clip evaluate with; `temperature`: that of their
  evaluation where it is not the learned one; `bias`: whether the weights have one, as models trained with a sigmoid do.
  A softmax over names cancels it.
- `quick_gelu`: the activation that the weights were trained with.
- `licence` of the weights; `source`: where they are described; `note`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rar_mmdet.encoders.base import Encoder
from rar_mmdet.errors import ConfigError

__all__ = ["Preset", "encoder_from_preset", "find_preset", "read_presets"]


@dataclass(frozen=True)
class Preset:
    """A published encoder: see the module for the fields. `None`: not known."""

    family: str
    name: str
    type: str
    arguments: dict[str, Any]
    image_size: int | None
    dim: int | None
    resize: str | None
    interpolation: str | None
    mean: list[float] | None
    std: list[float] | None
    text_length: int | None
    padding: str | None
    cleaning: str | None
    templates: str | None
    temperature: float | None
    bias: bool
    quick_gelu: bool | None
    licence: str | None
    source: str
    note: str | None

    def build(self, **settings: Any) -> Encoder:
        """The encoder, not loaded; `settings` go to its class, before the preset's own.

        Raises:
            ConfigError: the class has no such argument, or refuses a value.
        """
        # On demand: the package imports this module to export `encoder_from_preset`.
        target = getattr(importlib.import_module("rar_mmdet.encoders"), self.type)
        known = list(inspect.signature(target).parameters)
        for key in settings:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise ConfigError(
                    f"preset {self.name!r} ({self.type}) has no key {key!r}{hint} Its keys: {', '.join(known)}"
                )
        encoder: Encoder = target(**{**self.arguments, **settings})
        return encoder


@functools.cache
def read_presets() -> tuple[Preset, ...]:
    """All presets, family by family, in the order of the files."""
    presets = []
    for path in sorted(Path(__file__).parent.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        presets += [Preset(family=content["family"], **entry) for entry in content["presets"]]
    return tuple(presets)


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the message has the nearest names.
    """
    by_name = {preset.name: preset for preset in read_presets()}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(str(name).lower(), by_name, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ConfigError(f"there is no encoder preset {name!r}{hint}. `rar-mmdet encoders` lists them")


def encoder_from_preset(*, preset: str, **settings: Any) -> Encoder:
    """`dict(type="Encoder", preset=...)`: the encoder of a preset.

    Args:
        preset: its name, as `rar-mmdet encoders` lists them.
        settings: arguments of the encoder's class, such as `device`, `precision`, `batch_size`.

    Raises:
        ConfigError: there is no such preset, or its class has no such argument.
    """
    return find_preset(preset).build(**settings)
