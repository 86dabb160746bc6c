"""What questions are made of: photos with one label each, or annotated boxes of photos; with their vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.classification.command import recipe_of
from rar_mmdet.classification.draws import draw_seeded
from rar_mmdet.classification.vectors import PhotoVectors, encode_class_texts, encode_descriptions
from rar_mmdet.components import read_config, retriever_of
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.files.checkpoints import file_sha256
from rar_mmdet.memory import encode_exemplars, read_exemplars, sample_exemplars
from rar_mmdet.memory.cache import default_cache_dir

__all__ = ["Source", "annotated_boxes", "whole_photos"]


@dataclass(frozen=True)
class Source:
    """N things with a label each."""

    name: str
    paths: Sequence[str]  # N photos
    boxes_xyxy: Sequence[tuple[float, float, float, float] | None]  # N, in pixels of the upright photo; None: all of it
    labels: Tensor  # (N,) int64
    names: Sequence[str]  # C, as a model reads them
    vectors: Tensor  # (N, D) unit vectors
    text: Tensor  # (D, C) unit columns
    described: dict[str, Any]  # of what data, for summary.json

    @property
    def groups(self) -> Sequence[str] | None:
        """Photos as names of groups, where one may have several boxes."""
        return None if all(box is None for box in self.boxes_xyxy) else self.paths


def whole_photos(
    config: Path, options: Sequence[str], out: Path, device: torch.device, shots: int | None, seed: int
) -> Source:
    """The train part of a data set, by a config of `rar-mmdet classify`; of each class so many, a seeded draw.

    Raises:
        RarError: something is missing or wrong.
    """
    recipe = recipe_of({**read_config(config, options), "ranker": None}, out)
    dataset = recipe.dataset
    photos = dataset.train if shots is None else draw_seeded(dataset, shots, seed).examples
    photos = tuple(dict.fromkeys(photos))
    if not photos:
        raise ConfigError(f"{dataset.name} has no train part to make questions of")
    _load(recipe.encoder, device)
    return Source(
        name=dataset.name,
        paths=[photo.path for photo in photos],
        boxes_xyxy=[None] * len(photos),
        labels=torch.tensor([photo.label for photo in photos]),
        names=dataset.display_names,
        vectors=PhotoVectors(recipe.encoder, recipe.cropper, default_cache_dir().parent / "photos")(photos),
        text=encode_class_texts(recipe.encoder, dataset),
        described=dataset.describe(),
    )


def annotated_boxes(
    config: Path,
    options: Sequence[str],
    annotations: Path,
    images: Path,
    device: torch.device,
    shots: int | None,
    seed: int,
) -> Source:
    """Boxes of a COCO, LVIS or V3Det file, cropped and encoded as a recogniser's config says; of each category so many.

    Raises:
        RarError: something is missing or wrong.
    """
    recognizer = retriever_of(config, options)
    found = read_exemplars(annotations, images, recognizer.category_names)
    if shots is not None:
        found = sample_exemplars(found, shots=shots, seed=seed)
    _load(recognizer.encoder, device)
    cropper = recognizer.cropper.with_size(recognizer.encoder.image_size)
    # Entries are sorted by category; under its own number each box keeps its place.
    numbered = [dataclasses.replace(one, category_id=number) for number, one in enumerate(found)]
    key = f"finetune {cropper!r}"
    entries = encode_exemplars(
        recognizer.encoder, cropper.crop, numbered, parts_dir=default_cache_dir().parent / "boxes", key=key
    )
    texts = [[f"a photo of a {name}."] for name in recognizer.category_names]
    return Source(
        name=annotations.name,
        paths=[str(one.image) for one in found],
        boxes_xyxy=[one.box_xyxy for one in found],
        labels=torch.tensor([one.category_id for one in found]),
        names=recognizer.category_names,
        vectors=entries.vectors,
        text=encode_descriptions(recognizer.encoder, texts),
        described={"annotations": str(annotations), "sha256": file_sha256(annotations), "boxes": len(found)},
    )


def _load(encoder: Any, device: torch.device) -> None:
    if missing := encoder.missing_assets():
        raise MissingAssetError("; ".join(missing))
    encoder.load(device)
