"""How much larger than the object its window is: the paper's adaptive crop (sections 3.2 and C.3, Table 11).

A scale policy is a function of the boxes alone: (R, 4) boxes in pixels of the original image -> (R,) factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import ConfigError

__all__ = ["COCO_AREA_BOUNDS", "AreaScale", "FixedScale", "ScalePolicy", "SmoothAreaScale", "box_areas"]

COCO_AREA_BOUNDS = (32.0**2, 96.0**2)  # px^2; COCO's and LVIS's small < 32^2 <= medium < 96^2 <= large


class ScalePolicy(Protocol):
    """Window side / longer box side, for every box.

    A policy of yours must compare by its values, as a frozen dataclass does: croppers are told apart by theirs.
    """

    def __call__(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, 4) boxes in original pixels -> (R,) factors, all > 0."""


def box_areas(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) areas in px^2."""
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])


def _check_factor(name: str, value: float) -> float:
    if not (isinstance(value, float | int | np.number) and np.isfinite(value) and value > 0):
        raise ConfigError(f"scale: {name}={value!r} must be a finite number > 0 (1.0 is the box itself)")
    return float(value)


def _check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2 and 0 < bounds[0] < bounds[1]):
        raise ConfigError(f"scale: bounds={bounds!r} must be two areas in px^2, 0 < small/medium < medium/large")
    return float(bounds[0]), float(bounds[1])


@dataclass(frozen=True)
class FixedScale:
    """The same factor for every box.

    Args:
        factor: Window side / longer box side; 1.0 is the box.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _check_factor("factor", self.factor))

    def __call__(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full(len(boxes_xyxy), self.factor)


@dataclass(frozen=True)
class AreaScale:
    """One factor per size of object (paper section 3.2, "adaptive"; the defaults are the best rows of its Table 11).

    Args:
        small: Factor of boxes with an area below `bounds[0]`.
        medium: Factor of boxes in between.
        large: Factor of boxes with an area of `bounds[1]` and above.
        bounds: The two areas, in px^2 of the original image.
    """

    small: float = 2.8
    medium: float = 1.6
    large: float = 1.0
    bounds: tuple[float, float] = COCO_AREA_BOUNDS

    def __post_init__(self) -> None:
        for name in ("small", "medium", "large"):
            object.__setattr__(self, name, _check_factor(name, getattr(self, name)))
        object.__setattr__(self, "bounds", _check_bounds(self.bounds))

    @property
    def factors(self) -> tuple[float, float, float]:
        """Small, medium, large."""
        return self.small, self.medium, self.large

    def __call__(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(self.factors)[np.digitize(box_areas(boxes_xyxy), self.bounds)]


@dataclass(frozen=True)
class SmoothAreaScale(AreaScale):
    """`AreaScale` without its jumps (ours): a box of 32.1 px and one of 31.9 px get nearly the same window.

    The three factors stand at three areas, and log(factor) is linear in log(area) between them, constant beyond.
    `medium` stands at the geometric middle of the medium bin (55 px squared for COCO's bounds), `small` and `large` at
    the middles of neighbouring bins of the same width in log area (18.5 and 166 px squared).
    """

    def __call__(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = np.log(self.bounds)
        knots = (low + high) / 2 + np.array([-1.0, 0.0, 1.0]) * (high - low)
        return np.exp(np.interp(np.log(box_areas(boxes_xyxy)), knots, np.log(self.factors)))
