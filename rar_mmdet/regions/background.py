"""What happens to the pixels around the object (paper section 3.2, "blur"; C.3, Table 11; Table 3, "CLIP w/ mask").

A background is made from the crop itself, after resampling (decision 1 of the architecture): its cost does not depend
on the photo, and it looks the same around an object of 20 px and one of 900 px. It never touches the pixels kept sharp.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.errors import ConfigError
from rar_mmdet.regions.kernels import blur_outside

__all__ = ["Background", "BlurBackground", "BlurOutsideMask", "GreyBackground", "NoBackground"]

# Half the width of a Gaussian in σ; the tail left out weighs 6e-5, less than a hundredth of a grey level.
TRUNCATE = 4.0
# A blur is done at 1 / f of the size when σ / f is still at least this: for no picture more than two levels off.
MIN_REDUCED_SIGMA = 2.5


class Background(Protocol):
    """Pixels for outside the object.

    A background of yours must compare by its values, as a frozen dataclass does: croppers are told apart by theirs.
    """

    @property
    def is_identity(self) -> bool:
        """Nothing is replaced."""
        return False

    @property
    def uses_mask(self) -> bool:
        """Keep the mask sharp, where a sample has one, rather than the box."""
        return False

    @property
    def feather(self) -> float:
        """Width in output pixels of the ramp from sharp to background, outside the sharp pixels."""
        return 0.0

    def at_size(self, ratio: float) -> Background:
        """What looks the same in crops of `ratio` times the side: lengths in output pixels grow with it."""
        return self

    def paint(self, crop: NDArray[np.uint8], inside: NDArray[np.int64]) -> None:
        """Replace what is outside of a box in a (3, S, S) crop, in place.

        inside: (4,) x1, y1, x2, y2 of the box in output pixels, x2 and y2 excluded.
        """

    def paint_batch(self, crops: Tensor) -> Tensor:
        """(n, 3, S, S) float crops in 0..255 -> pixels to show outside, the same shape and range; on any device."""


def _check_length(where: str, name: str, value: float, what: str = "number of output pixels") -> float:
    if not (isinstance(value, float | int | np.number) and 0 <= value < np.inf):
        raise ConfigError(f"{where}: {name}={value!r} must be a {what} >= 0")
    return float(value)


def _check_feather(feather: float) -> float:
    return _check_length("background", "feather", feather, "width in output pixels")


@dataclass(frozen=True)
class NoBackground:
    """Leave the surroundings as they are."""

    is_identity: ClassVar[bool] = True
    uses_mask: ClassVar[bool] = False
    feather: ClassVar[float] = 0.0

    def at_size(self, ratio: float) -> Self:
        return self

    def paint(self, crop: NDArray[np.uint8], inside: NDArray[np.int64]) -> None:
        pass

    def paint_batch(self, crops: Tensor) -> Tensor:
        return crops


@dataclass(frozen=True)
class BlurBackground:
    """A Gaussian blur of everything outside the box.

    Args:
        sigma: Standard deviation in *output* pixels; 0 leaves the crop as it is. The default takes away what a ViT can
            see inside one of its 14 or 16 px patches (99.9% of the amplitude at a period of 16 px) and leaves the
            layout and the colours of the scene (half the amplitude at a period of 53 px). Ours: the paper names no σ.
        feather: Width in output pixels of a linear ramp from sharp to blurred, outside the box; 0 is a hard edge.
    """

    sigma: float = 10.0
    feather: float = 0.0
    uses_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _check_length(type(self).__name__, "sigma", self.sigma))
        object.__setattr__(self, "feather", _check_feather(self.feather))

    @property
    def is_identity(self) -> bool:
        return self.sigma < 0.1  # the next pixel weighs less than exp(-50)

    def at_size(self, ratio: float) -> Self:
        return replace(self, sigma=self.sigma * ratio, feather=self.feather * ratio)

    def paint(self, crop: NDArray[np.uint8], inside: NDArray[np.int64]) -> None:
        blur_outside(crop, inside, *reduced_blur(crop.shape[-1], self.sigma))

    def paint_batch(self, crops: Tensor) -> Tensor:
        matrix = torch.from_numpy(blur_matrix(crops.shape[-1], self.sigma)).to(crops.device, crops.dtype)
        return matrix @ crops @ matrix.T


@dataclass(frozen=True)
class BlurOutsideMask(BlurBackground):
    """`BlurBackground` that keeps an object's mask sharp rather than its box ("CLIP w/ mask", paper Table 3).

    Samples without masks, and masks with no pixel in the window, fall back to the box.
    """

    uses_mask: ClassVar[bool] = True


@dataclass(frozen=True)
class GreyBackground:
    """One grey everywhere outside the box.

    Args:
        level: The grey, 0..255.
        feather: Width in output pixels of a linear ramp from the crop to grey, outside the box.
    """

    level: int = 128
    feather: float = 0.0
    is_identity: ClassVar[bool] = False
    uses_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.level, float | int | np.number) and 0 <= self.level <= 255):
            raise ConfigError(f"GreyBackground: level={self.level!r} must be in 0..255")
        object.__setattr__(self, "level", int(self.level))
        object.__setattr__(self, "feather", _check_feather(self.feather))

    def at_size(self, ratio: float) -> Self:
        return replace(self, feather=self.feather * ratio)

    def paint(self, crop: NDArray[np.uint8], inside: NDArray[np.int64]) -> None:
        x1, y1, x2, y2 = inside
        kept = crop[:, y1:y2, x1:x2].copy()
        crop[:] = self.level
        crop[:, y1:y2, x1:x2] = kept

    def paint_batch(self, crops: Tensor) -> Tensor:
        return torch.full_like(crops, self.level)


def gaussian(sigma: float) -> NDArray[np.float64]:
    """(2 h + 1,) kernel, sums to 1."""
    half_width = int(np.ceil(TRUNCATE * sigma))
    kernel = np.exp(-0.5 * (np.arange(-half_width, half_width + 1) / sigma) ** 2)
    return kernel / kernel.sum()


def mirrored_convolution(size: int, kernel: NDArray[np.float64], stride: int = 1) -> NDArray[np.float64]:
    """(size // stride, size) matrix that convolves a line, mirrored at both ends, and keeps every stride-th value.

    Value i is centred on the middle of the `stride` pixels it stands for.
    """
    begin = stride * np.arange(size // stride) - (len(kernel) - stride) // 2
    source = (begin[:, None] + np.arange(len(kernel))) % (2 * size)
    matrix = np.zeros((len(begin), size))
    np.add.at(matrix, (np.arange(len(begin))[:, None], np.minimum(source, 2 * size - 1 - source)), kernel)
    return matrix


@functools.lru_cache(maxsize=8)
def blur_matrix(size: int, sigma: float) -> NDArray[np.float32]:
    """(S, S) matrix B such that B @ column is its Gaussian blur, mirrored at both ends."""
    # From σ = 4 S on everything is the mean: the slowest wave, of period 2 S, keeps exp(-79) of its amplitude.
    return mirrored_convolution(size, gaussian(min(sigma, 4.0 * size))).astype(np.float32)


@functools.lru_cache(maxsize=64)
def reduced_blur(size: int, sigma: float) -> tuple[tuple[NDArray, ...], tuple[NDArray, ...], tuple[NDArray, ...]]:
    """`blur_matrix` as three cheap steps, for `blur_outside`: reduce by f, blur, interpolate linearly."""
    sigma, factor = min(sigma, 4.0 * size), 1
    while sigma / (2 * factor) >= MIN_REDUCED_SIGMA and size % (2 * factor) == 0:
        factor *= 2
    low_pass = np.ones(1)
    if factor > 1:  # three box averages; one lets finer stripes through as if they were coarse (10 grey levels)
        low_pass = np.convolve(np.convolve(np.ones(factor), np.ones(factor + 1)), np.ones(factor + 1))
        low_pass /= low_pass.sum()
    variance = (low_pass * (np.arange(len(low_pass)) - (len(low_pass) - 1) / 2) ** 2).sum()
    if factor > 1:  # what interpolating linearly between pixels f apart adds, on average
        variance += factor**2 / 6
    small = size // factor
    smoothing = mirrored_convolution(small, gaussian(np.sqrt(sigma**2 - variance) / factor))
    place = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, small - 1)
    before = place.astype(np.uint32)
    after = np.minimum(before + np.uint32(1), np.uint32(small - 1))
    between = (before, after, (place - before).astype(np.float32))
    return _taps(mirrored_convolution(size, low_pass, factor)), _taps(smoothing), between


def _taps(matrix: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The rows of a matrix from their first to their last value that is not 0: first, count (n,), weight (n, T)."""
    used = matrix != 0
    first = used.argmax(axis=1)
    count = matrix.shape[1] - used[:, ::-1].argmax(axis=1) - first
    columns = np.minimum(first[:, None] + np.arange(count.max()), matrix.shape[1] - 1)
    weight = np.take_along_axis(matrix, columns, axis=1) * (np.arange(count.max()) < count[:, None])
    return first, count, weight.astype(np.float32)
