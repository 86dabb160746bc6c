"""Image files -> RGB arrays in the frame their annotations use."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import ImageReadError

__all__ = ["read_image"]


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB, whatever it stores.

    Grey becomes three equal channels, an alpha channel is dropped, 16 bits are scaled to 8. The EXIF orientation *is*
    applied, as `mmcv.imread(flag='color')` (MMDet's default loader, OpenCV's IMREAD_COLOR) does: boxes of annotation
    files, which MMDet reads in that frame, then fit.

    Raises:
        ImageReadError: The file is missing, truncated or not an image; the message names it.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageReadError(f"Cannot open image {path}: {error.strerror}. Check the path and data prefix.") from error
    if _is_truncated_jpeg(data):
        raise ImageReadError(f"Image {path} is truncated ({len(data)} bytes, no end-of-image marker). Fetch it again.")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise ImageReadError(f"{path} is not an image OpenCV can decode, or is damaged ({len(data)} bytes).")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _is_truncated_jpeg(data: bytes) -> bool:
    """OpenCV decodes a JPEG cut short with a warning and grey rows; those would be recognised as if they were photo."""
    return data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-1024:]
