"""Settings that belong together, grouped: one object, or a plain dict in a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rar_mmdet.errors import ConfigError

__all__ = ["Limits", "as_options"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """When a region is not asked about, and when a run is stopped.

    Args:
        decisive_margin: regions whose best two retrieval probabilities differ by this much or more are not asked about;
            `None` asks about all. `tools/calibrate_ranker.py` finds it.
        max_fallback_rate: share of asked regions without a usable answer above which the run fails.
    """

    decisive_margin: float | None = None
    max_fallback_rate: float = 0.2

    def __post_init__(self) -> None:
        if self.decisive_margin is not None and not self.decisive_margin >= 0:
            raise ConfigError(f"decisive_margin must be at least 0, or None to ask always, got {self.decisive_margin}")
        if not 0 <= self.max_fallback_rate <= 1:
            raise ConfigError(f"max_fallback_rate must be in [0, 1], got {self.max_fallback_rate}")


def as_options(kind: type[_T], value: _T | Mapping[str, Any] | None, name: str) -> _T:
    """Options from themselves, from a dict of their settings, or all at their defaults.

    Args:
        kind: the dataclass.
        value: what was given.
        name: of the argument, for errors.

    Raises:
        ConfigError: it has no such setting, or is something else.

    >>> as_options(Limits, {"max_fallback_rate": 1.0}, "limits")
    Limits(decisive_margin=None, max_fallback_rate=1.0)
    """
    if isinstance(value, kind):
        return value
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} must be a {kind.__name__}, or a dict with the keys {', '.join(known)}; got {value!r}"
        )
    settings = {key: part for key, part in (value or {}).items() if key != "type"}
    if unknown := [key for key in settings if key not in known]:
        raise ConfigError(f"{name} has no key {unknown[0]!r}; its keys: {', '.join(known)}")
    return kind(**settings)
