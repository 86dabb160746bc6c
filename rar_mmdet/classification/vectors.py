"""One vector for each photo, encoded once and kept on disk; all rows, shots and seeds of a table share them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.classification.dataset import PhotoDataset
from rar_mmdet.encoders.base import Encoder
from rar_mmdet.errors import DatasetError, ImageReadError
from rar_mmdet.files.names import clean_name
from rar_mmdet.memory.encode import PromptGroup, encode_groups
from rar_mmdet.regions import RegionCropper

__all__ = [
    "Encoded",
    "Photo",
    "PhotoVectors",
    "encode_class_texts",
    "encode_descriptions",
    "encode_names",
    "encode_photos",
    "read_descriptions",
    "whole_photo",
]

PHOTOS_PER_FILE = 1024  # a run that is stopped loses at most the encoding of so many (ours)
NAMES_PER_FILE = 8192
PHOTOS_PER_BATCH = 64


class Photo(Protocol):
    """What is encoded: an `Example`, or a photo without a label."""

    @property
    def id(self) -> str:
        """The same on every machine."""
        ...

    @property
    def path(self) -> str:
        """Where it is."""
        ...

    @property
    def loader(self) -> Any:
        """`None` for files."""
        ...

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright."""
        ...


@dataclass(frozen=True)
class Encoded:
    """A photo as its encoder knows it."""

    vector: Tensor  # (D,) float32, unit length
    hw: tuple[int, int]  # height and width of the upright photo


def whole_photo(example: Photo, cropper: RegionCropper) -> tuple[Tensor, tuple[int, int]]:
    """The photo as one box, (1, 3, S, S) uint8, and its height and width."""
    photo = example.read()
    height, width = photo.shape[:2]
    return cropper.crop(photo, [[0, 0, width, height]]), (height, width)


def encode_photos(
    encoder: Encoder, examples: Sequence[Photo], cropper: RegionCropper, cache_dir: Path | None
) -> Mapping[str, Encoded]:
    """Unit vectors of photos, by id.

    Args:
        encoder: an encoder of crops, loaded.
        examples: photos; one that stands there twice is encoded once.
        cropper: how a photo becomes a crop; its size is the encoder's.
        cache_dir: folder of vectors, keyed by encoder, crop and photos (id, bytes and time of change); `None`: nothing
            is kept. Photos that are no files are never kept.

    Returns:
        id -> its vector and size.

    Raises:
        ImageReadError: a photo is missing or damaged; it is named.
    """
    unique = list({example.id: example for example in examples}.values())
    encoded: dict[str, Encoded] = {}
    with tqdm(total=len(unique), desc="encode", unit="photo", disable=None) as bar:
        for start in range(0, len(unique), PHOTOS_PER_FILE):
            part = unique[start : start + PHOTOS_PER_FILE]
            file = None if cache_dir is None else _file(cache_dir, encoder, cropper, part)
            found = _read(file, len(part))
            if found is None:
                found = _encode(encoder, part, cropper, bar)
                _write(file, found)
            else:
                bar.update(len(part))
            for example, vector, (height, width) in zip(part, found["vectors"], found["hw"].tolist(), strict=True):
                encoded[example.id] = Encoded(vector, (height, width))
    return encoded


class PhotoVectors:
    """Vectors of photos by one encoder: each photo is encoded when it is first asked for, and held.

    Args:
        encoder: of crops, loaded.
        cropper: how a photo becomes a crop; its size becomes the encoder's.
        cache_dir: as for `encode_photos`.
    """

    def __init__(self, encoder: Encoder, cropper: RegionCropper, cache_dir: Path | None) -> None:
        self.encoder, self._cropper, self._cache_dir = encoder, cropper, cache_dir
        self._encoded: dict[str, Encoded] = {}

    def __call__(self, examples: Sequence[Photo]) -> Tensor:
        """(N, D) float32 unit vectors of N photos; (0, 0) of none."""
        new = [example for example in examples if example.id not in self._encoded]
        if new:
            cropper = self._cropper.with_size(self.encoder.image_size)
            self._encoded |= encode_photos(self.encoder, new, cropper, self._cache_dir)
        return torch.stack([self._encoded[e.id].vector for e in examples]) if examples else torch.zeros(0, 0)

    def hw(self, example: Photo) -> tuple[int, int]:
        """Height and width of an upright photo that is encoded already."""
        return self._encoded[example.id].hw


def encode_class_texts(encoder: Encoder, dataset: PhotoDataset) -> Tensor:
    """(D, C) unit columns: the mean over the set's templates of the unit vectors of each class's prompt name."""
    templates = dataset.templates
    return encode_descriptions(encoder, [[t.replace("{}", name) for t in templates] for name in dataset.prompt_names])


def encode_names(encoder: Encoder, names: Sequence[str], templates: Sequence[str], cache_dir: Path | None) -> Tensor:
    """(D, C) unit columns of names, as `encode_class_texts`; kept on disk in parts: a dictionary is encoded once.

    Args:
        encoder: loaded.
        names: C.
        templates: texts with {} for the name.
        cache_dir: folder of vectors, keyed by encoder and texts; `None`: nothing is kept.
    """
    columns = [torch.zeros(encoder.dim, 0)]
    with tqdm(total=len(names), desc="encode names", unit="name", disable=None) as bar:
        for start in range(0, len(names), NAMES_PER_FILE):
            part = [[t.replace("{}", name) for t in templates] for name in names[start : start + NAMES_PER_FILE]]
            digest = hashlib.sha256(f"{encoder.fingerprint}\n{json.dumps(part)}".encode()).hexdigest()[:32]
            file = None if cache_dir is None else cache_dir / f"names-{digest}.safetensors"
            found = _read(file, len(part), ("vectors",))
            if found is None:
                found = {"vectors": encode_descriptions(encoder, part).T.cpu().contiguous()}
                _write(file, found)
            columns.append(found["vectors"].T)
            bar.update(len(part))
    return torch.cat(columns, dim=1)


def read_descriptions(file: str | Path, dataset: PhotoDataset) -> tuple[tuple[str, ...], ...]:
    """Sentences for each class, in label order, from a JSON file {class name: [sentence, ...]}, as CuPL publishes them.

    Raises:
        DatasetError: it is no such file, or a class has no sentences; names are compared as people read them.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"descriptions {file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(lines, list) and lines and all(isinstance(line, str) for line in lines) for lines in content.values()
    ):
        raise DatasetError(f"descriptions {file} must be an object of class names with lists of sentences")
    by_name = {clean_name(name).casefold(): tuple(lines) for name, lines in content.items()}
    found = [by_name.get(clean_name(name).casefold()) for name in dataset.display_names]
    missing = [name for name, lines in zip(dataset.display_names, found, strict=True) if lines is None]
    if missing:
        raise DatasetError(
            f"descriptions {file} lack {len(missing)} of {dataset.num_classes} classes, such as "
            f"{', '.join(missing[:3])}"
        )
    return tuple(lines for lines in found if lines is not None)


def encode_descriptions(encoder: Encoder, descriptions: Sequence[Sequence[str]]) -> Tensor:
    """(D, C) unit columns: for each class the mean of the unit vectors of its sentences, at unit length."""
    groups = [PromptGroup(label, "sentences", tuple(lines)) for label, lines in enumerate(descriptions)]
    return encode_groups(encoder, groups).T.contiguous()


def _encode(encoder: Encoder, examples: Sequence[Photo], cropper: RegionCropper, bar: tqdm) -> dict[str, Tensor]:
    vectors: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    for start in range(0, len(examples), PHOTOS_PER_BATCH):
        crops, hw = zip(*(whole_photo(e, cropper) for e in examples[start : start + PHOTOS_PER_BATCH]), strict=True)
        # Always as many: the last bits of a matrix product depend on its shape, and so on the company of a photo.
        batch = torch.cat([*crops, crops[-1].repeat(PHOTOS_PER_BATCH - len(crops), 1, 1, 1)])
        vectors.append(encoder.encode_images(batch)[: len(crops)].cpu())
        sizes += hw
        bar.update(len(hw))
    return {"vectors": torch.cat(vectors), "hw": torch.tensor(sizes)}


def _file(cache_dir: Path, encoder: Encoder, cropper: RegionCropper, examples: Sequence[Photo]) -> Path | None:
    """Where these vectors are kept: another name for another encoder, crop or photo."""
    digest = hashlib.sha256(f"{encoder.fingerprint}\n{cropper!r}\n".encode())
    for example in examples:
        if example.loader is not None:
            return None
        try:
            state = os.stat(example.path)
        except OSError as error:
            raise ImageReadError(f"{example.path} cannot be read: {error.strerror}") from error
        digest.update(f"{example.id}\t{state.st_size}\t{state.st_mtime_ns}\n".encode())
    return cache_dir / f"photos-{digest.hexdigest()[:32]}.safetensors"


def _read(file: Path | None, count: int, keys: Sequence[str] = ("vectors", "hw")) -> dict[str, Tensor] | None:
    """The vectors and sizes of a file; `None` where there is none, or none that can be read."""
    if file is None or not file.is_file():
        return None
    try:
        found = load_file(file)
    except (SafetensorError, OSError):
        return None  # cut off by a full disk: encoded anew and written over
    return found if all(name in found and len(found[name]) == count for name in keys) else None


def _write(file: Path | None, found: dict[str, Tensor]) -> None:
    """All or nothing."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    save_file(found, part)
    os.replace(part, file)
