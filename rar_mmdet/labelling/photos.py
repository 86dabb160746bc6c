"""Photos of a folder, and what was found in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rar_mmdet.errors import ImageReadError, MissingAssetError
from rar_mmdet.labelling.outlines import Outline

__all__ = ["Label", "LabelledPhoto", "find_photos"]

# What Pillow reads without plugins and people keep photos in.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
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


def find_photos(folder: str | Path) -> tuple[list[str], dict[str, int]]:
    """Paths of the photos below a folder, relative to it and sorted; and how many other files of which kind.

    Hidden files and folders are passed over. Links to folders are followed, each folder once, so that links in a
    circle end.

    Raises:
        MissingAssetError: there is no such folder.
        ImageReadError: there is no photo in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingAssetError(f"photos: there is no folder {str(root)!r}; give the folder your photos lie in")
    found, others = [], {"raw": 0, "video": 0, "other": 0}
    for file in _files(root):
        suffix = file.suffix.lower()
        if suffix in SUFFIXES:
            found.append(file.relative_to(root).as_posix())
        else:
            others["raw" if suffix in RAW else "video" if suffix in VIDEO else "other"] += 1
    if not found:
        there = ", ".join(f"{count} {kind}" for kind, count in others.items() if count) or "nothing"
        raise ImageReadError(
            f"photos: {str(root)!r} holds no photo ({there}); expected files that end in {', '.join(SUFFIXES)}. RAW "
            "photos and videos must be developed or cut into photos first"
        )
    return sorted(found), {kind: count for kind, count in others.items() if count}


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
