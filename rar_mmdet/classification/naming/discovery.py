"""Which photos names are found on: a few of the train part, without labels and without a path to the test part."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.classification.dataset import Example, PhotoDataset, digest_text
from rar_mmdet.classification.draws import draw_seeded
from rar_mmdet.classification.reading import load_json_file
from rar_mmdet.errors import DatasetError, ImageReadError
from rar_mmdet.files.images import read_image

__all__ = ["LARGEST", "Discovery", "DiscoveryPhoto", "draw_discovery", "photo_key", "photos_by_id"]

P = TypeVar("P", "DiscoveryPhoto", Example)
LARGEST = "largest"
LARGEST_POOL = 50  # FineR draws from so many of a class's largest files (data/data_utils.py)


@dataclass(frozen=True)
class DiscoveryPhoto:
    """A photo without a label: all that a name finder ever gets."""

    id: str
    path: str
    loader: Callable[[], Any] | None = field(default=None, compare=False, repr=False)

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright.

        Raises:
            ImageReadError: the photo is missing or damaged.
        """
        return read_image(self.path if self.loader is None else self.loader())


@dataclass(frozen=True)
class Discovery:
    """The photos of one draw, in an order that says nothing about their classes.

    (RAR's release pairs photos and guesses through a list sorted by true class.)
    """

    dataset: str
    split_sha256: str
    rule: str
    photos: tuple[DiscoveryPhoto, ...]
    per_class: int | None = None  # None: as a list of photos says
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.photos)

    def describe(self) -> dict[str, Any]:
        """What every file of names must say about its photos."""
        return {
            "rule": self.rule,
            "per_class": self.per_class,
            "seed": self.seed,
            "photos": len(self),
            "sha256": digest_text(sorted(photo.id for photo in self.photos)),
        }


def draw_discovery(dataset: PhotoDataset, *, per_class: int = 3, seed: int = 1, rule: str = "seeded") -> Discovery:
    """Photos of the train part: `per_class` of each class, or those that a file lists.

    The labels decide how many photos of each class are drawn, as in FineR, and are then gone.

    Args:
        dataset: with a train part.
        per_class: photos of each class (3 in FineR and in Table 1).
        seed: of the draw and of the order.
        rule: 'seeded' (ours); 'largest': among the 50 largest files of each class, as FineR's release; or a JSON file
            with a list of ids of train photos.

    Raises:
        DatasetError: no train part, no such rule, or a list with photos that are not in the train part.
    """
    if rule == "seeded":
        chosen = list(draw_seeded(dataset, per_class, seed).examples)
        said = "drawn by rar_mmdet from the train part, without replacement"
    elif rule == LARGEST:
        chosen = list(draw_seeded(_only_largest(dataset), per_class, seed).examples)
        said = f"drawn by rar_mmdet among the {LARGEST_POOL} largest files of each class (FineR's rule)"
    elif Path(rule).is_file():
        chosen, said = _listed(Path(rule), dataset), f"the photos of {Path(rule).name}"
    else:
        raise DatasetError(
            f"--draws {rule!r}: expected 'seeded', '{LARGEST}' or a JSON file with a list of train photos"
        )
    photos = sorted((DiscoveryPhoto(e.id, e.path, e.loader) for e in chosen), key=lambda photo: photo.id)
    random.Random(f"{seed}/discovery").shuffle(photos)
    drawn = rule in ("seeded", LARGEST)
    return Discovery(dataset.name, dataset.split_sha256, said, tuple(photos), per_class if drawn else None, seed)


def _only_largest(dataset: PhotoDataset) -> PhotoDataset:
    """The set with the largest files of each class as its train part."""

    def size(example: Example) -> int:
        if example.loader is not None:
            raise DatasetError(f"{dataset.name}: {example.id!r} is no file, so files cannot be compared by their size")
        try:
            return os.stat(example.path).st_size
        except OSError as error:
            raise ImageReadError(f"{example.path} cannot be read: {error.strerror}") from error

    by_label: dict[int, list[Example]] = {}
    for example in sorted(dataset.train, key=lambda e: (-size(e), e.id)):
        by_label.setdefault(example.label, []).append(example)
    kept = {example.id for pool in by_label.values() for example in pool[:LARGEST_POOL]}
    return replace(dataset, train=tuple(example for example in dataset.train if example.id in kept))


def _listed(file: Path, dataset: PhotoDataset) -> list[Example]:
    content = load_json_file(file, "list of discovery photos")
    ids = list(content) if isinstance(content, (list, dict)) else []
    if not ids or not all(isinstance(photo, str) for photo in ids):
        raise DatasetError(f"{file} must be a JSON list of ids of train photos, or an object whose keys are ids")
    by_id = photos_by_id(dataset.train)
    found = {photo: by_id.get(photo) or by_id.get(photo_key(photo)) for photo in ids}
    missing = [photo for photo, example in found.items() if example is None]
    if missing:
        raise DatasetError(
            f"{file}: {len(missing)} of {len(ids)} photos are not in the train part of {dataset.name}, such as "
            f"{missing[0]!r}; it is a list for another set or split"
        )
    return [example for example in found.values() if example is not None]


def photo_key(photo: str) -> str:
    """A photo by its file's name, as others may have copied it: no folder, no 'NNN.' in front, no case.

    FineR's discovery folders rename 'yorkshire_terrier_186.jpg' to '036.Yorkshire_Terrier_186.jpg'.
    """
    name = photo.replace("\\", "/").rpartition("/")[2].casefold()
    number, dot, rest = name.partition(".")
    return rest if dot and number.isdigit() and "." in rest else name


def photos_by_id(photos: Iterable[P]) -> dict[str, P]:
    """Photos by their id, and by their `photo_key` where no two share it."""
    known = list(photos)
    count = Counter(photo_key(photo.id) for photo in known)
    by_key = {photo_key(photo.id): photo for photo in known if count[photo_key(photo.id)] == 1}
    return {**by_key, **{photo.id: photo for photo in known}}
