"""Arrays and tensors of any common kind -> uint8 RGB.

One rule for grey levels, whatever holds them (`to_uint8`):

    uint8                       as it is
    bool                        0 and 255
    uint16                      value // 256, as OpenCV's IMREAD_COLOR does with 16-bit files
    other integers              0..255; larger or negative ones are refused
    floats, none above 1        0..1, times 255
    floats, some above 2        0..255

and one for channels (`to_rgb`): grey becomes three equal channels, an alpha channel is dropped.
What is none of these is refused with the name of the image; nothing is clipped or stretched to fit.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.errors import ImageReadError

__all__ = ["bgr_to_rgb", "tensor_to_rgb", "to_rgb", "to_uint8"]

HALF_LEVEL = 0.5  # floats may leave 0..255 by a rounding error, but by no grey level
# Floats above 1 and up to 2 are refused: a photo in 0..1 that a filter made overshoot, or an almost black one in
# 0..255? The first taken for the second would be recognised as a black picture.
MOST_AMBIGUOUS = 2.0
FEW_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGB and alpha


def to_uint8(pixels: NDArray, name: str = "image", *, float_max: float | None = None) -> NDArray[np.uint8]:
    """Grey levels 0..255 of an array of any shape and numeric dtype; a uint8 array comes back as it is.

    Args:
        pixels: the values.
        name: what an error calls the image.
        float_max: the value of white, 1 or 255, where floats are known to use it. `None`: told by the largest value.

    Raises:
        ImageReadError: there are no pixels, or their values fit no rule at the head of this file.
    """
    if pixels.size == 0:
        raise ImageReadError(f"{name} has no pixels: its shape is {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    kind = pixels.dtype.kind
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise ImageReadError(f"{name} holds {pixels.dtype} values; expected uint8, or floats in 0..1 or 0..255")
    low, high = float(pixels.min()), float(pixels.max())
    if kind == "f":
        values = pixels.astype(np.float32) * np.float32(_levels_per_unit(low, high, pixels.dtype, name, float_max))
        return np.rint(values).clip(0, 255).astype(np.uint8)
    if pixels.dtype.itemsize == 2 and kind == "u":
        _check_16_bits(high, name)
        return (pixels >> 8).astype(np.uint8)
    if low < 0 or high > 255:
        raise ImageReadError(
            f"{name} holds {pixels.dtype} values in {low:g}..{high:g}; integers must be grey levels in 0..255, or a "
            "uint16 array of 16-bit levels in 0..65535"
        )
    return pixels.astype(np.uint8)


def _levels_per_unit(low: float, high: float, dtype: object, name: str, float_max: float | None) -> float:
    """By what to multiply floats in low..high to get grey levels."""
    if np.isnan(low) or np.isnan(high):
        raise ImageReadError(f"{name} holds NaN; expected numbers in 0..1 or 0..255. Was it divided by zero?")
    if float_max is None:
        float_max = 1.0 if high <= 1 + HALF_LEVEL / 255 else 255.0
        if float_max > 1 and high <= MOST_AMBIGUOUS:
            raise ImageReadError(
                f"{name} holds {dtype} values in {low:g}..{high:g}: 0..1 that overshoots, or almost black 0..255? "
                "Clip it to 0..1, or round it to uint8"
            )
    factor = 255 / float_max
    if low * factor < -HALF_LEVEL or high * factor > 255 + HALF_LEVEL:
        raise ImageReadError(
            f"{name} holds {dtype} values in {low:g}..{high:g}; expected floats in 0..1 or 0..255. Was it normalised "
            "by a mean and a standard deviation? Give the photo before that"
        )
    return factor


def _check_16_bits(high: float, name: str) -> None:
    if 0 < high <= 255:
        raise ImageReadError(
            f"{name} holds 16-bit values none of which is above {high:g}: as 16-bit levels it is black. If they are "
            "levels in 0..255, give them as 8 bits: image.astype(np.uint8)"
        )


def to_rgb(pixels: NDArray, name: str = "image", *, float_max: float | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an array of grey levels (H, W) or with 1 to 4 channels last (grey, RGB; with alpha).

    Returns:
        A C-contiguous array; it shares the memory of `pixels` where that is (H, W, 3) uint8 and contiguous already.

    Raises:
        ImageReadError: another shape, or values that `to_uint8` refuses.
    """
    _check_array_shape(pixels.shape, name)
    levels = to_uint8(pixels, name, float_max=float_max)
    if levels.ndim == 2:
        levels = levels[:, :, None]
    levels = np.repeat(levels[:, :, :1], 3, axis=2) if levels.shape[2] < 3 else levels[:, :, :3]
    return np.ascontiguousarray(levels)


def bgr_to_rgb(pixels: NDArray, name: str = "image", *, float_max: float | None = 255) -> NDArray[np.uint8]:
    """`to_rgb` for what MMDetection's loaders give: the channel order is BGR, and floats are in 0..255."""
    _check_array_shape(pixels.shape, name)
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[:, :, 2::-1]  # an alpha channel, the fourth, is left behind
    return to_rgb(pixels, name, float_max=float_max)


def _check_array_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in FEW_CHANNELS):
        return
    hint = ""
    if len(shape) == 3 and shape[0] in FEW_CHANNELS:
        hint = f". This looks like ({shape[0]}, H, W): give image.transpose(1, 2, 0), or a tensor"
    elif len(shape) == 4:
        hint = ". Give one image at a time"
    elif len(shape) == 1:
        hint = ". These may be the bytes of a file: give image.tobytes()"
    raise ImageReadError(f"{name} must be (H, W, 3) RGB, (H, W) grey or (H, W, 4) RGBA, got an array {shape}{hint}")


def tensor_to_rgb(image: Tensor, name: str = "image") -> Tensor:
    """(3, H, W) uint8 RGB of a tensor of grey levels (H, W) or with 1 to 4 channels first; on the same device.

    Returns:
        A tensor that shares the memory of `image` where that is uint8 already.

    Raises:
        ImageReadError: another shape, or values that `to_uint8` refuses.
    """
    shape = tuple(image.shape)
    if len(shape) != 2 and not (len(shape) == 3 and shape[0] in FEW_CHANNELS):
        hint = ""
        if len(shape) == 3 and shape[2] in FEW_CHANNELS:
            hint = f". This looks like (H, W, {shape[2]}): give image.permute(2, 0, 1), or image.numpy()"
        elif len(shape) == 4:
            hint = ". Give one image at a time"
        raise ImageReadError(f"{name} must be (3, H, W) RGB, (H, W) grey or (4, H, W) RGBA, got a tensor {shape}{hint}")
    levels = _levels_of_tensor(image, name)
    if levels.ndim == 2:
        levels = levels[None]
    return levels[:1].expand(3, -1, -1) if len(levels) < 3 else levels[:3]


def _levels_of_tensor(image: Tensor, name: str) -> Tensor:
    """`to_uint8` for tensors; the values of floats stay on their device."""
    if image.dtype == torch.uint8 and image.numel():
        return image
    if image.is_floating_point() and image.numel():
        values = image.detach().float()
        low, high = (float(value) for value in values.aminmax())
        factor = _levels_per_unit(low, high, image.dtype, name, None)
        return (values * factor).round_().clamp_(0, 255).to(torch.uint8)
    return torch.from_numpy(to_uint8(image.detach().cpu().numpy(), name)).to(image.device)
