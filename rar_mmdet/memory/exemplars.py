"""Few-shot entries: exemplar regions of annotated photos, encoded like the regions that will be asked about."""

from __future__ import annotations

import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.errors import InvalidBoxError, MissingAssetError, VocabularyError
from rar_mmdet.files.coco import box_of, is_object, photo_path, photo_size_hw
from rar_mmdet.files.images import check_size, photo_hw, read_image
from rar_mmdet.memory.encode import once
from rar_mmdet.memory.entries import Entries, EntryKind

__all__ = ["Exemplar", "encode_exemplars", "sample_exemplars"]

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64  # photos between two writes to disk (ours)


class ImageEncoder(Protocol):
    """What exemplars need of an encoder."""

    @property
    def fingerprint(self) -> str: ...

    def encode_images(self, crops: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Exemplar:
    """One annotated region."""

    image: str  # path of the photo
    annotation_id: int
    category_id: int  # row of the vocabulary
    box_xyxy: tuple[float, float, float, float]  # pixels of the photo
    photo_hw: tuple[int, int] | None = None  # the photo's size as the annotation file has it


def sample_exemplars(
    annotations: Path, image_root: Path, category_names: Sequence[str], *, shots: int, seed: int = 0
) -> list[Exemplar]:
    """`shots` regions of each category of a COCO, LVIS or V3Det annotation file; fewer where it has fewer.

    The choice of one category depends on the seed and its own annotations alone, so that adding categories or
    photos of others leaves it. Crowds, regions below 2 px, boxes that are no numbers or lie outside their photo, and
    annotations of unknown photos or categories are left out.

    Raises:
        MissingAssetError: the file is not there.
        VocabularyError: its categories are not `category_names`, in their order.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    if not annotations.is_file():
        raise MissingAssetError(f"annotation file {annotations.absolute()} does not exist")
    content = json.loads(annotations.read_text(encoding="utf-8"))
    names = [category["name"] for category in content["categories"]]
    if names != list(category_names):
        raise VocabularyError(
            f"{annotations}: its {len(names)} categories are not the {len(category_names)} of the vocabulary in their "
            "order; take exemplars from the dataset the vocabulary is of"
        )
    row = {category["id"]: index for index, category in enumerate(content["categories"])}
    photos = {image["id"]: image for image in content["images"]}
    by_category: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        photo, category = photos.get(annotation.get("image_id")), row.get(annotation.get("category_id"))
        if photo is not None and category is not None and _is_usable(annotation, photo):
            by_category[category].append(annotation)
    chosen = []
    for category_id in sorted(by_category):
        pool = sorted(by_category[category_id], key=lambda annotation: annotation["id"])
        for annotation in random.Random(f"{seed}/{category_id}").sample(pool, min(shots, len(pool))):
            x, y, width, height = annotation["bbox"]
            photo = photos[annotation["image_id"]]
            path, box = str(photo_path(photo, image_root)), (x, y, x + width, y + height)
            chosen.append(Exemplar(path, annotation["id"], category_id, box, photo_size_hw(photo)))
    short = sum(len(by_category[c]) < shots for c in range(len(names)))
    if short:
        logger.warning("%d of %d categories have fewer than %d regions in %s", short, len(names), shots, annotations)
    return chosen


def encode_exemplars(
    encoder: ImageEncoder,
    crop: Callable[[np.ndarray, Tensor], Tensor],
    exemplars: Sequence[Exemplar],
    *,
    parts_dir: Path | None = None,
    key: str = "",
) -> Entries:
    """Image entries of exemplars.

    Args:
        encoder: encodes the crops.
        crop: photo (H, W, 3) uint8 RGB and boxes (n, 4) to crops (n, 3, S, S) uint8; the recogniser's own cropper.
        exemplars: the regions.
        parts_dir: folder for finished parts; a stopped build goes on from there.
        key: names the cropper's settings, so that parts made with others are not used.
    """
    by_photo: dict[str, list[Exemplar]] = defaultdict(list)
    for exemplar in exemplars:
        by_photo[exemplar.image].append(exemplar)
    photos = sorted(by_photo)
    ordered = [exemplar for photo in photos for exemplar in by_photo[photo]]
    if not ordered:
        raise VocabularyError("there are no exemplars; the annotation file has no usable regions")
    vectors = []
    with tqdm(total=len(ordered), unit="region", desc="exemplars", disable=None) as bar:
        for start in range(0, len(photos), IMAGES_PER_PART):
            part = [by_photo[photo] for photo in photos[start : start + IMAGES_PER_PART]]
            size = sum(len(own) for own in part)
            identity = [key, encoder.fingerprint, [(e.image, e.annotation_id, e.box_xyxy) for own in part for e in own]]

            def compute(part: list[list[Exemplar]] = part) -> Tensor:
                crops = [_crop_photo(crop, own) for own in part]
                return encoder.encode_images(torch.cat(crops)).float().cpu()

            vectors.append(once(parts_dir, identity, size, compute))
            bar.update(size)
    ids = torch.tensor([exemplar.category_id for exemplar in ordered])
    sources = [f"{Path(exemplar.image).name}#{exemplar.annotation_id}" for exemplar in ordered]
    return Entries.sorted(torch.cat(vectors), ids, EntryKind.IMAGE, sources)


def _is_usable(annotation: dict[str, Any], photo: dict[str, Any]) -> bool:
    """Whether this is one object, of 2 px at least, with a part in its photo."""
    box = box_of(annotation)
    if box is None or not is_object(annotation) or min(annotation["bbox"][2:]) < 2:
        return False
    x1, y1, x2, y2 = box
    height, width = photo_size_hw(photo) or (math.inf, math.inf)
    return x1 < width and y1 < height and x2 > 0 and y2 > 0


def _crop_photo(crop: Callable[[np.ndarray, Tensor], Tensor], exemplars: Sequence[Exemplar]) -> Tensor:
    """(n, 3, S, S) crops of the exemplars of one photo."""
    path = exemplars[0].image
    photo = read_image(path)
    check_size(photo_hw(photo), exemplars[0].photo_hw, f"photo {path}")
    try:
        return crop(photo, torch.tensor([exemplar.box_xyxy for exemplar in exemplars]))
    except InvalidBoxError as error:
        ids = [exemplar.annotation_id for exemplar in exemplars]
        raise InvalidBoxError(f"photo {path}, annotations {ids}: {error}") from error
