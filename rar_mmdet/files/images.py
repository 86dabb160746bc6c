"""Image files -> RGB arrays in the frame their annotations use."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rar_mmdet.errors import ImageReadError
from rar_mmdet.files.opencv import cv2

__all__ = ["check_complete", "read_image"]

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"


def read_image(path: str | Path) -> NDArray:
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
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise ImageReadError(f"{path} is not an image OpenCV can decode, or is damaged ({len(data)} bytes).")
    check_complete(data, f"Image {path}")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def check_complete(data: bytes, name: str) -> None:
    """Refuse a truncated JPEG or PNG.

    OpenCV decodes what there is, logs a line and leaves the rest grey: that would be recognised as if it were photo.
    PIL is strict, and is asked only where the end marker seems missing: what a camera appends to a file can hide it.

    Args:
        data: The file's bytes; other formats pass.
        name: What the message calls the file.

    Raises:
        ImageReadError: Part of the image is missing.
    """
    if not _looks_truncated(data):
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise ImageReadError(f"{name} is truncated or damaged ({len(data)} bytes): {error}. Fetch it again.") from error


def _looks_truncated(data: bytes) -> bool:
    """Whether the end marker of a JPEG, after its last scan starts, or of a PNG is missing."""
    if data.startswith(JPEG_START):
        return data.rfind(JPEG_END) < data.rfind(JPEG_SCAN)
    return data.startswith(PNG_START) and PNG_END not in data[-1024:]
