"""The one image reader: files, bytes, PIL images, arrays and tensors -> RGB in the frame that annotations use.

Everything that looks at a photo reads it here, so that an exemplar, a test region and a photo given in Python are the
same pixels. Files are decoded as MMDetection's default loader decodes them (`mmcv.imread(flag="color")`, which is
OpenCV's IMREAD_COLOR): the EXIF orientation *is* applied, 16 bits become 8 by leaving out the lower 8, grey becomes
three equal channels, alpha is dropped, and of an animation or a file of several pages the first is taken. Boxes of
annotation files, which MMDetection reads in that frame, then fit.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rar_mmdet.errors import ImageReadError
from rar_mmdet.files.names import counted, shown
from rar_mmdet.files.opencv import cv2
from rar_mmdet.files.pixels import tensor_to_rgb, to_rgb

__all__ = [
    "ImageSource",
    "as_photo",
    "check_complete",
    "check_pixels",
    "check_size",
    "decode_image",
    "photo_hw",
    "read_image",
    "readable_photos",
]

logger = logging.getLogger(__name__)

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray | Tensor | Image.Image

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"
# What PIL raises for a damaged file, by format; the last two for sizes it finds too large.
PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning)
# How files that are often taken for photos begin, and what to do.
LOOK_ALIKES = (
    (b"<", "it begins like a web page or an SVG drawing; download the photo itself"),
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull`"),
    (b"%PDF", "it is a PDF; save the page as PNG"),
    (b"\0\0\1\0", "it is an icon (ICO); save it as PNG"),
)
HEIC_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")


def read_image(source: ImageSource) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a photo, wherever it comes from.

    Args:
        source: a path; the bytes of a file; a PIL image of any mode (turned upright if it carries an EXIF orientation);
            an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; a tensor (3, H, W). Grey levels may be uint8,
            uint16 (all 16 bits), integers in 0..255, or floats in 0..1 or 0..255 (`rar_mmdet.files.pixels`).

    Returns:
        A C-contiguous array. An array that is (H, W, 3) uint8 and contiguous already is not copied.

    Raises:
        ImageReadError: the source is missing, damaged, too large, or no image; the message names it.
    """
    if isinstance(source, str | os.PathLike):
        return decode_image(_read_file(source), f"image {os.fspath(source)}")
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source), f"image given as {len(bytes(source))} bytes")
    if isinstance(source, Image.Image):
        return _read_pil(source)
    if isinstance(source, np.ndarray):
        return to_rgb(source)
    if isinstance(source, Tensor):
        return np.ascontiguousarray(tensor_to_rgb(source).permute(1, 2, 0).cpu().numpy())
    raise ImageReadError(
        f"cannot read an image from {type(source).__name__}; give a path, the bytes of a file, a PIL image, an "
        "(H, W, 3) RGB array or a (3, H, W) RGB tensor"
    )


def readable_photos(photos: Iterable[str | os.PathLike[str]]) -> tuple[list[str], dict[str, str]]:
    """Which photos can be read, and why the others cannot: for programs that stop at the first one that is damaged.

    Each is decoded once (about 3 ms for 640x480), and nothing of it is kept. A warning of the log counts and names
    those that are left out.

    Args:
        photos: their files.

    Returns:
        The paths that can be read, in their order; and of each other path what is wrong with it.
    """
    good: list[str] = []
    left_out: dict[str, str] = {}
    for photo in photos:
        path = str(os.fspath(photo))
        try:
            read_image(path)
            good.append(path)
        except ImageReadError as error:
            left_out[path] = str(error)
    if left_out:
        count = counted(len(left_out), "photo")
        logger.warning("%s cannot be read and left out: %s", count, shown(list(left_out.values()), "; "))
    return good, left_out


def as_photo(source: ImageSource) -> NDArray[np.uint8] | Tensor:
    """What croppers take: `read_image`, but tensors stay tensors, (3, H, W) uint8 on the device they are on.

    Raises:
        ImageReadError: as in `read_image`.
    """
    return tensor_to_rgb(source) if isinstance(source, Tensor) else read_image(source)


def photo_hw(photo: NDArray | Tensor) -> tuple[int, int]:
    """Height and width of what `as_photo` gives."""
    height, width = photo.shape[1:] if isinstance(photo, Tensor) else photo.shape[:2]
    return int(height), int(width)


def check_size(found_hw: tuple[int, int], said_hw: tuple[int, int] | None, name: str) -> None:
    """Refuse a photo whose size is not the one its annotations were made for: boxes would fall on wrong pixels.

    Args:
        found_hw: height and width of the pixels.
        said_hw: height and width in the annotation file; `None` where it does not say.
        name: what the message calls the photo.

    Raises:
        ImageReadError: they differ.
    """
    if said_hw is not None and tuple(said_hw) != tuple(found_hw):
        raise ImageReadError(
            f"{name} is {found_hw[1]}x{found_hw[0]} px but its annotation says {said_hw[1]}x{said_hw[0]}; boxes would "
            "fall on wrong pixels. Is it another file of that name, or were the boxes drawn before the photo was "
            "turned upright (EXIF)?"
        )


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of the bytes of an image file.

    Args:
        data: all bytes of the file.
        name: what the messages call it, for instance "image photo.jpg".

    Raises:
        ImageReadError: there are no bytes, they are no image OpenCV knows, part of it is missing, or it is too large.
    """
    if not data:
        raise _not_an_image(data, name)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageReadError(
            f"{name} cannot be decoded: OpenCV says {error.err!r}. It reads up to 2^30 pixels and what fits into "
            "memory; make the image smaller, or set OPENCV_IO_MAX_IMAGE_PIXELS before Python starts."
        ) from error
    if pixels is None:
        raise _not_an_image(data, name)
    check_complete(data, name)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def check_pixels(data: bytes, name: str, most: int) -> None:
    """Refuse an image of too many pixels before it is decoded: a file of a few kB can hold gigabytes of them.

    Args:
        data: all bytes of the file.
        name: what the messages call it.
        most: width times height.

    Raises:
        ImageReadError: it has more, or its header is none that PIL knows.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageReadError(f"{name} is too large: {error}") from error
    except PIL_ERRORS as error:
        raise _not_an_image(data, name) from error
    if width * height > most:
        raise ImageReadError(
            f"{name} is {width}x{height} px, {width * height / 1e6:.1f} megapixels; at most {most / 1e6:g} are taken. "
            "Make it smaller"
        )


def _not_an_image(data: bytes, name: str) -> ImageReadError:
    """Says what the file seems to be."""
    if not data:
        return ImageReadError(f"{name} is not an image: it has 0 bytes. A download that was stopped? Fetch it again.")
    hint = next((hint for start, hint in LOOK_ALIKES if data.lstrip().startswith(start)), None)
    if data[4:12] in HEIC_BRANDS:
        hint = "it is a HEIC photo; save it as JPEG"
    elif hint is None and _looks_truncated(data):
        hint = "its end is missing; fetch it again"
    return ImageReadError(
        f"{name} is not an image OpenCV can decode, or is damaged ({len(data)} bytes)"
        + (f": {hint}." if hint else ". If other programs show it, save it as PNG or JPEG.")
    )


def check_complete(data: bytes, name: str) -> None:
    """Refuse a truncated JPEG or PNG.

    Some versions of OpenCV decode what there is, log a line and leave the rest grey: that would be recognised as if it
    were photo. PIL is strict, and is asked only where the end marker seems missing: what a camera appends to a file can
    hide it.

    Args:
        data: the file's bytes; other formats pass.
        name: what the message calls the file.

    Raises:
        ImageReadError: Part of the image is missing.
    """
    if not _looks_truncated(data):
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name} is truncated or damaged ({len(data)} bytes). Fetch it again.") from error
    except PIL_ERRORS as error:
        raise ImageReadError(f"{name} is truncated or damaged ({len(data)} bytes): {error}. Fetch it again.") from error


def _looks_truncated(data: bytes) -> bool:
    """Whether the end marker of a JPEG, after its last scan starts, or of a PNG is missing."""
    if data.startswith(JPEG_START):
        return data.rfind(JPEG_END) <= data.rfind(JPEG_SCAN)
    return data.startswith(PNG_START) and PNG_END not in data[-1024:]


def _read_file(source: str | os.PathLike[str]) -> bytes:
    name = os.fspath(source)
    if isinstance(name, str) and "://" in name:
        raise ImageReadError(f"Cannot open image {name}: this is an address. Download the image and give its path.")
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            return Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageReadError(f"Cannot open image {name}: {reason}. Check the path and data prefix.") from error
    if stat.S_ISDIR(mode):
        raise ImageReadError(f"Cannot open image {name}: it is a folder. Give the path of one image.")
    raise ImageReadError(f"Cannot open image {name}: it is a pipe or a device. Give the path of a file, or its bytes.")


def _read_pil(image: Image.Image) -> NDArray[np.uint8]:
    file = getattr(image, "filename", "")  # images made in memory have none
    name = f"PIL image {file or 'without a file'} ({image.mode}, {image.width} x {image.height} px)"
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("La", "RGBa"):  # colours multiplied by their alpha
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        if image.mode[0] not in "IF":
            image = image.convert("RGB")
        pixels = np.asarray(image)
    except PIL_ERRORS as error:
        raise ImageReadError(f"{name} cannot be read: {error}") from error
    except AssertionError as error:  # PIL's own, where the file was closed before anybody looked at the pixels
        raise ImageReadError(f"{name} cannot be read: its file is closed; call image.load() before that") from error
    if image.mode == "I" and pixels.min(initial=0) >= 0 and pixels.max(initial=0) < 2**16:
        pixels = pixels.astype(np.uint16)  # what PIL gives for some 16-bit files
    return to_rgb(pixels, name)
