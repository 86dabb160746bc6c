"""The pixels regions are cut from: those of the original image, never of the normalised, resized network input."""

from __future__ import annotations

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine import fileio
from torch import Tensor

from rar_mmdet.errors import ImageReadError
from rar_mmdet.files.images import decode_image
from rar_mmdet.models.frames import describe

__all__ = ["original_image"]


def original_image(
    sample: DetDataSample, device: torch.device, backend_args: dict | None = None
) -> np.ndarray | Tensor:
    """The original image of a data sample, RGB uint8.

    The field `ori_img`, (H, W, 3) uint8 RGB, packed by `KeepOriginalImage` and `PackRecognitionInputs`, is taken first.
    Without it the file `img_path` is read again: exact, but a second decode (about 3 ms for 640x480).

    Returns:
        (H, W, 3) array on the CPU, (3, H, W) tensor elsewhere.

    Raises:
        ImageReadError: there are no pixels to be had, or they are not those of `ori_shape`.
    """
    packed = sample.get("ori_img", None)
    if packed is None:
        packed = torch.from_numpy(_read_rgb(sample, backend_args))
    expected_hw = sample.metainfo.get("ori_shape")
    if expected_hw is not None and tuple(packed.shape[:2]) != tuple(expected_hw[:2]):
        raise ImageReadError(
            f"{describe(sample.metainfo)}: the original image is {packed.shape[1]}x{packed.shape[0]} px, but ori_shape "
            f"says {expected_hw[1]}x{expected_hw[0]}; put KeepOriginalImage before every transform that resizes"
        )
    if device.type == "cpu":
        return packed.cpu().numpy()
    return packed.to(device, non_blocking=True).permute(2, 0, 1)


def _read_rgb(sample: DetDataSample, backend_args: dict | None) -> np.ndarray:
    path = sample.metainfo.get("img_path")
    if path is None:
        raise ImageReadError(
            f"{describe(sample.metainfo)} came as an array, so there is no file to cut regions from; add "
            "dict(type='rar_mmdet.KeepOriginalImage') after the loading transform and end the pipeline with "
            "dict(type='rar_mmdet.PackRecognitionInputs')"
        )
    name = describe(sample.metainfo)
    try:
        data = fileio.get(path, backend_args=backend_args)
    except OSError as error:
        raise ImageReadError(f"{name} cannot be read: {error}") from error
    return decode_image(data, name)
