"""What the readers share: files that must be there, text, JSON and .mat files, and names made for people."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rar_mmdet.classification.catalogue import SetSpec
from rar_mmdet.classification.dataset import SPLITS, Example, PhotoDataset
from rar_mmdet.errors import DatasetError, HostError, MissingAssetError
from rar_mmdet.files.text import decode_text, read_bytes
from rar_mmdet.scoring.json_files import load_json

__all__ = [
    "check_counts",
    "check_photos",
    "load_json_file",
    "plain_id",
    "plain_name",
    "read_lines",
    "read_mat",
    "split_paths",
]


def split_paths(spec: SetSpec, root: Path) -> list[Path]:
    """The files that say which photo is in which part.

    Raises:
        MissingAssetError: one is not there. Nothing is split anew in its place: numbers on another split are not
            comparable, and nobody would notice.
    """
    paths = [root / spec.folder / name for name in spec.split_files]
    for path in paths:
        if not path.is_file():
            raise MissingAssetError(
                f"{spec.name}: {path.name} must lie at {path.absolute()} and is not there; {spec.where}. The set is "
                "never split anew"
            )
    return paths


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file without the empty ones; both ends stripped.

    Raises:
        DatasetError: it is no text.
        MissingAssetError: there is no such file.
    """
    where = f"{what} {path}"
    text = decode_text(read_bytes(str(path), where, DatasetError), where, DatasetError)
    return [line.strip() for line in text.splitlines() if line.strip()]


def load_json_file(path: Path, what: str) -> Any:
    """What a JSON file holds; a pickle is recognised and refused, never loaded.

    Raises:
        DatasetError: it is damaged, or something else than JSON.
    """
    hint = "CoOp's own few-shot lists are pickles, which can run any code; use the JSON lists instead."
    return load_json(path, what, DatasetError, hint=hint)


def read_mat(path: Path, *keys: str) -> list[Any]:
    """Variables of a MATLAB file.

    Raises:
        HostError: SciPy is not installed.
        DatasetError: the file is damaged, or has no such variable.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise HostError(f"{path.name} is a MATLAB file, read by SciPy; pip install scipy") from error
    try:
        content = loadmat(str(path), variable_names=list(keys))
    except Exception as error:  # SciPy raises whatever its parser trips over
        raise DatasetError(f"{path} is no MATLAB file, or damaged ({error}); fetch it again") from error
    missing = [key for key in keys if key not in content]
    if missing:
        raise DatasetError(f"{path} has no variable {missing[0]!r}; is it another file of that name?")
    return [content[key] for key in keys]


def plain_id(value: object, where: str) -> str:
    """A path relative to the folder of photos.

    Raises:
        DatasetError: it is none, or leads out of the folder.
    """
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{where}: {value!r} is no path of a photo")
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DatasetError(f"{where}: {value!r} leads out of the folder of photos; expected a path relative to it")
    return str(path)


def plain_name(value: object, where: str) -> str:
    """A class name with spaces for underscores, as CoOp puts it into its templates.

    Raises:
        DatasetError: it is no text, or empty.
    """
    name = " ".join(value.replace("_", " ").split()) if isinstance(value, str) else ""
    if not name:
        raise DatasetError(f"{where}: {value!r} is no name of a class")
    return name


def check_photos(name: str, examples: Iterable[Example], folder: Path) -> None:
    """Every photo must be there; folders are listed, so that large sets cost no call per photo.

    Raises:
        MissingAssetError: some are not; the message has the first and how many.
    """
    by_folder: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_folder[os.path.dirname(example.path)].append(example)
    missing = []
    for parent, own in by_folder.items():
        try:
            there = set(os.listdir(parent))
        except OSError:
            there = set()
        missing += [example for example in own if os.path.basename(example.path) not in there]
    if missing:
        total = sum(map(len, by_folder.values()))
        raise MissingAssetError(
            f"{name}: {len(missing)} of {total} photos are not there, the first is {missing[0].path}; unpack them "
            f"under {folder.absolute()}"
        )


def check_counts(spec: SetSpec, dataset: PhotoDataset) -> None:
    """The numbers of classes and photos must be the published ones.

    Raises:
        DatasetError: they are not; the message has both.
    """
    expected: Sequence[int | None] = (spec.classes, *spec.counts)
    found = (dataset.num_classes, *(len(dataset.part(split)) for split in SPLITS))
    wrong = [
        f"{what} {actual:,} instead of {count:,}"
        for what, count, actual in zip(("classes", *SPLITS), expected, found, strict=True)
        if count is not None and count != actual
    ]
    if wrong:
        raise DatasetError(
            f"{spec.name}: {', '.join(wrong)}. The files are of another version, incomplete, or not this set; fetch "
            "them again. For a part of the set on purpose: check_counts=False, which results then say"
        )
