"""Photos of a folder, and what was found in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rar_mmdet.errors import ImageReadError, MissingAssetError
from rar_mmdet.labelling.outlines import Outline

__all__ = ["Label", "LabelledPhoto", "find_photos", "told"]

# What Pillow reads without plugins and people keep photos in.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
HEIC = (".avif", ".heic", ".heif")
RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
VIDEO = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True)
class Label:
    """One box with the class it got."""

    box_xyxy: tuple[float, float, float, float]  # pixels of the upright photo
    class_id: int  # row of the word list's classes
    score: float  # in [0, 1]
    outline: Outline = ()  # of its mask; none where there is no mask


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo with its labels."""

    id: int  # from 1 on; the same in every run over this output folder
    name: str  # path below the folder of photos, with forward slashes
    path: Path  # where the photo is
    width: int  # of the upright photo, pixels
    height: int
    labels: tuple[Label, ...]


def find_photos(folder: str | Path) -> tuple[list[str], dict[str, list[str]]]:
    """Paths of the photos below a folder, relative to it and sorted; and the other files by their kind.

    Hidden files and folders are passed over. Links to folders are followed, each folder once, so that links in a
    circle end. A photo whose name is no UTF-8 is another file: no format of labels could name it.

    Raises:
        MissingAssetError: there is no such folder.
        ImageReadError: there is no photo in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingAssetError(f"photos: there is no folder {str(root)!r}; give the folder your photos lie in")
    found: list[str] = []
    others: dict[str, list[str]] = {}
    for file in _files(root):
        name = file.relative_to(root).as_posix()
        shown = name.encode("utf-8", "backslashreplace").decode()
        if (kind := _kind(file.suffix.lower())) is None and shown == name:
            found.append(name)
        else:
            others.setdefault(kind or "photo with a name that is no UTF-8", []).append(shown)
    if not found:
        raise ImageReadError(
            f"photos: {str(root)!r} holds no photo ({told(others) or 'nothing'}); expected files that end in "
            f"{', '.join(SUFFIXES)}. Develop RAW photos, save HEIC as JPEG and cut videos into photos first"
        )
    return sorted(found), others


def told(others: Mapping[str, Sequence[str]]) -> str:
    """How many files of which kind, with the first of each."""
    return ", ".join(f"{len(names)} {kind} ({names[0]})" for kind, names in sorted(others.items()))


def _kind(suffix: str) -> str | None:
    """What a file is that is no photo; `None` for a photo."""
    kinds = {"RAW": RAW, "HEIC": HEIC, "video": VIDEO}
    return None if suffix in SUFFIXES else next((kind for kind, known in kinds.items() if suffix in known), "other")


def _files(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
