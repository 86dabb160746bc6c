"""Photos with one label each, split once and for all by whoever published the set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import DatasetError
from rar_mmdet.files.checkpoints import file_sha256
from rar_mmdet.files.images import read_image

__all__ = ["SPLITS", "Example", "PhotoDataset", "digest_files", "digest_text"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Example:
    """One photo and what is on it."""

    id: str  # path relative to the folder of photos, with forward slashes: the same on every machine
    path: str  # where the photo is; of photos that are no files, what messages call it
    label: int  # row of the vocabulary
    display_name: str  # the name people and language models read
    prompt_name: str  # the name put into the retriever's templates
    loader: Callable[[], Any] | None = field(default=None, compare=False, repr=False)  # for photos that are no files

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright: EXIF orientation is applied. (CLIP's own loader ignores it.)

        Raises:
            ImageReadError: the photo is missing or damaged.
        """
        return read_image(self.path if self.loader is None else self.loader())


@dataclass(frozen=True)
class PhotoDataset:
    """Train, val and test part of a set; each may be empty but test.

    Raises:
        DatasetError: a label outside the vocabulary, names that differ within a class, the same photo twice in a part
            or in two parts, or no test photos.
    """

    name: str
    display_names: tuple[str, ...]  # C, in label order; two classes may share a name
    prompt_names: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    split_sha256: str  # of the file, or files, that say which photo is in which part
    split_source: str  # those files
    templates: tuple[str, ...] = ("a photo of a {}.",)
    template_source: str = "OpenAI's CLIP"
    counts_checked: bool = False  # whether the numbers of photos are known to be the published ones

    def __post_init__(self) -> None:
        if len(self.display_names) != len(self.prompt_names) or not self.prompt_names:
            raise DatasetError(
                f"{self.name}: {len(self.prompt_names)} prompt names and {len(self.display_names)} display names; "
                "expected one of each for every class"
            )
        if not self.test:
            raise DatasetError(f"{self.name}: the test part is empty; there is nothing to recognise")
        seen: dict[str, str] = {}
        for split in SPLITS:
            for example in self.part(split):
                self._check_example(example, split)
                if example.id in seen:
                    where = (
                        f"twice in {split}" if seen[example.id] == split else f"in {seen[example.id]} and in {split}"
                    )
                    raise DatasetError(f"{self.name}: photo {example.id!r} is {where}; the parts must not overlap")
                seen[example.id] = split

    def _check_example(self, example: Example, split: str) -> None:
        if not 0 <= example.label < self.num_classes:
            raise DatasetError(
                f"{self.name}, {split}: {example.id!r} has label {example.label}, expected 0 to {self.num_classes - 1}"
            )
        names = self.display_names[example.label], self.prompt_names[example.label]
        if names != (example.display_name, example.prompt_name):
            raise DatasetError(
                f"{self.name}, {split}: {example.id!r} of class {example.label} is called "
                f"{(example.display_name, example.prompt_name)!r}, the class {names!r}"
            )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.prompt_names)

    def part(self, split: str) -> tuple[Example, ...]:
        """The examples of `train`, `val` or `test`.

        Raises:
            DatasetError: there is no such part.
        """
        if split not in SPLITS:
            raise DatasetError(f"{self.name} has no part {split!r}; there are {', '.join(SPLITS)}")
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def describe(self) -> dict[str, Any]:
        """What every result must say about the data it is of."""
        return {
            "dataset": self.name,
            "classes": self.num_classes,
            "photos": {split: len(self.part(split)) for split in SPLITS},
            "counts_checked": self.counts_checked,
            "split_source": self.split_source,
            "split_sha256": self.split_sha256,
            "templates": list(self.templates),
            "template_source": self.template_source,
        }


def digest_files(paths: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, of the lines `name sha256` of each, in the order given."""
    hashes = [file_sha256(path) for path in paths]
    if len(paths) == 1:
        return hashes[0]
    return digest_text(f"{path.name} {value}" for path, value in zip(paths, hashes, strict=True))


def digest_text(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, for splits that are a matter of folders and not of a file."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()
