"""Few-shot entries: regions of photos, or whole photos, encoded like the regions that will be asked about.

Three steps that may be used alone: `read_exemplars` lists the regions of an annotation file, `sample_exemplars` draws
some of each category, `encode_exemplars` makes entries of exemplars from anywhere.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.errors import AnnotationFileError, ConfigError, InvalidBoxError, VocabularyError
from rar_mmdet.files.coco import box_of, is_object, photo_path, photo_size_hw
from rar_mmdet.files.images import ImageSource, check_size, photo_hw, read_image
from rar_mmdet.files.text import parse_json, read_bytes
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.memory.base import EntryEncoder, MixingEncoder, PhotoEncoder
from rar_mmdet.memory.cache import compute_or_resume
from rar_mmdet.memory.encode import full_precision
from rar_mmdet.memory.entries import Entries, EntryKind

__all__ = ["Exemplar", "encode_exemplars", "read_exemplars", "sample_exemplars"]

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64  # photos between two writes to disk (ours)
MIN_SIDE = 2  # px; smaller regions show nothing (ours)
CROWDS, SPECKS = "crowds or ignored regions", f"below {MIN_SIDE} px"  # in every file; nothing to mend

Look = Callable[[NDArray[np.uint8], Tensor], Tensor]  # photo and boxes to a row for each box


@dataclass(frozen=True)
class Exemplar:
    """One example of a category."""

    image: ImageSource  # a path, or anything else that `rar_mmdet.files.read_image` takes
    category_id: int  # row of the vocabulary
    box_xyxy: tuple[float, float, float, float] | None = None  # pixels of the upright photo; None: the whole photo
    source: str = ""  # what messages and `Entries.sources` call it; "": the name of the file and the box
    photo_hw: tuple[int, int] | None = None  # height and width the box was made for; None: not known

    @property
    def name(self) -> str:
        """What people call it."""
        if self.source:
            return self.source
        where = "" if self.box_xyxy is None else f" [{', '.join(f'{side:g}' for side in self.box_xyxy)}]"
        return f"{Path(self.image).name if isinstance(self.image, str | os.PathLike) else 'image'}{where}"


def read_exemplars(annotations: str | Path, image_root: str | Path, category_names: Sequence[str]) -> list[Exemplar]:
    """Every usable region of a COCO, LVIS or V3Det annotation file, in the order of their ids.

    Left out, counted and logged are crowds, regions below 2 px, boxes that are no numbers or lie outside their photo,
    and annotations of photos or categories that the file does not have. Categories that are not in `category_names` are
    left out without a word.

    Args:
        annotations: the file.
        image_root: folder its file names (or the end of its `coco_url`) start from.
        category_names: the vocabulary, in label order: names of the file, in any order or some of them.

    Raises:
        MissingAssetError: the file is not there.
        AnnotationFileError: it is no annotation file.
        VocabularyError: a name is not among its categories; see `label_order`.
    """
    where = f"annotation file {str(annotations)!r}"
    content = parse_json(read_bytes(str(annotations), where, AnnotationFileError), where, AnnotationFileError)
    photos, records = _records(content, "images", where), _records(content, "annotations", where)
    ids = label_order(content.get("categories"), category_names, where)
    row = {category_id: label for label, category_id in enumerate(ids)}
    known = {category["id"] for category in content["categories"]}
    by_id = {photo["id"]: photo for photo in photos if isinstance(photo.get("id"), int | str)}
    found: list[tuple[Any, Exemplar]] = []
    left_out: Counter[str] = Counter()
    for place, record in enumerate(records):
        image_id = record.get("image_id")
        photo = by_id.get(image_id) if isinstance(image_id, int | str) else None
        problem = _problem(record, photo, known)
        if problem is not None:
            left_out[problem] += 1
        elif record["category_id"] in row:
            assert photo is not None, "found by _problem"
            path, number = photo_path(photo, image_root), record.get("id")
            order = (0, number) if isinstance(number, int) else (1, place)
            exemplar = Exemplar(
                str(path), row[record["category_id"]], box_of(record), f"{path.name}#{number}", photo_size_hw(photo)
            )
            found.append((order, exemplar))
    if left_out:
        told = ", ".join(f"{count} {problem}" for problem, count in left_out.most_common())
        logger.log(
            logging.INFO if set(left_out) <= {CROWDS, SPECKS} else logging.WARNING, "%s: left out %s", where, told
        )
    return [exemplar for _, exemplar in sorted(found, key=lambda pair: pair[0])]


def sample_exemplars(exemplars: Iterable[Exemplar], *, shots: int, seed: int = 0) -> list[Exemplar]:
    """`shots` exemplars of each category; all of them where it has fewer.

    The choice of one category depends on the seed and its own exemplars alone, so that adding others leaves it.

    Raises:
        ConfigError: `shots` is not at least 1.
    """
    if shots < 1:
        raise ConfigError(f"shots must be at least 1, got {shots}")
    by_category: dict[int, list[Exemplar]] = defaultdict(list)
    for exemplar in exemplars:
        by_category[exemplar.category_id].append(exemplar)
    chosen = []
    for category_id, pool in sorted(by_category.items()):
        chosen += random.Random(f"{seed}/{category_id}").sample(pool, min(shots, len(pool)))
    short = sum(len(pool) < shots for pool in by_category.values())
    if short:
        logger.warning("%d of %d categories have fewer than %d exemplars", short, len(by_category), shots)
    return chosen


def encode_exemplars(
    encoder: EntryEncoder,
    crop: Look,
    exemplars: Iterable[Exemplar],
    *,
    parts_dir: Path | None = None,
    key: str = "",
) -> Entries:
    """Image entries of exemplars.

    Args:
        encoder: encodes the crops; one that encodes boxes of photos gets the photos, and `crop` is not used; one
            that mixes both gets both.
        crop: photo (H, W, 3) uint8 RGB and boxes (n, 4) to crops (n, 3, S, S) uint8; the recogniser's own
            `cropper.crop`, so that exemplars look as regions will.
        exemplars: in any order; those of one photo are cropped together.
        parts_dir: folder for finished parts; a stopped build goes on from there.
        key: names the cropper's settings, so that parts made with others are not used.

    Raises:
        ImageReadError: a photo cannot be read, or has another size than its boxes were made for.
        InvalidBoxError: a box cannot be cropped; the message names photo and exemplar.
        VocabularyError: there are no exemplars.
    """
    photos = _by_photo(exemplars)
    ordered = [exemplar for own in photos for exemplar in own]
    if not ordered:
        raise VocabularyError(
            "there are no exemplars, so there is nothing to encode. Does the file have usable regions?"
        )
    vectors = []
    look, are_vectors = _look_of(encoder, crop)
    # disable=None: a bar on a terminal, silence in a log file
    with tqdm(total=len(ordered), unit="region", desc="exemplars", disable=None) as bar, full_precision():
        for start in range(0, len(photos), IMAGES_PER_PART):
            part = photos[start : start + IMAGES_PER_PART]
            size = sum(len(own) for own in part)

            def compute(part: list[list[Exemplar]] = part, bar: Any = bar) -> Tensor:
                found = []
                for own in part:
                    found.append(_look_at(look, own))
                    bar.update(len(own))
                rows = torch.cat(found)
                return (rows if are_vectors else encoder.encode_images(rows)).float().cpu()

            identity = [key, encoder.fingerprint, [_identity(own) for own in part]] if parts_dir is not None else None
            vectors.append(compute_or_resume(parts_dir, identity, size, compute))
            bar.update(sum(map(len, vectors)) - bar.n)  # a part that was read from disk
    ids = torch.tensor([exemplar.category_id for exemplar in ordered])
    return Entries.sorted(torch.cat(vectors), ids, EntryKind.IMAGE, [exemplar.name for exemplar in ordered])


def _look_of(encoder: EntryEncoder, crop: Look) -> tuple[Look, bool]:
    """What is made of photo and boxes, and whether it is vectors already; crops of many photos are encoded together."""
    if isinstance(encoder, PhotoEncoder):
        return encoder.encode_regions, True
    if isinstance(encoder, MixingEncoder):
        mixing = encoder
        return lambda photo, boxes: mixing.mix(
            lambda: mixing.crops.encode_images(crop(photo, boxes)), lambda: mixing.regions.encode_regions(photo, boxes)
        ), True
    return crop, False


def _records(content: Any, key: str, where: str) -> list[Mapping[str, Any]]:
    """The list of records under a key of an annotation file."""
    records = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(records, list):
        raise AnnotationFileError(f"{where} has no list `{key}`; expected a COCO, LVIS or V3Det annotation file")
    odd = next((place for place, record in enumerate(records) if not isinstance(record, Mapping)), None)
    if odd is not None:
        raise AnnotationFileError(f"{where}: {key}[{odd}] = {records[odd]!r:.80}, expected a record. Mend it")
    return records


def _problem(record: Mapping[str, Any], photo: Mapping[str, Any] | None, known: set[int]) -> str | None:
    """Why a record is no exemplar, or nothing."""
    if not is_object(record):
        return CROWDS
    if photo is None:
        return "of unknown photos"
    if not isinstance(record.get("category_id"), int) or record["category_id"] not in known:
        return "of unknown categories"
    box = box_of(record)
    if box is None:
        return "without a box that has an area"
    x1, y1, x2, y2 = box
    if min(record["bbox"][2:]) < MIN_SIDE:
        return SPECKS
    height, width = photo_size_hw(photo) or (math.inf, math.inf)
    return None if x1 < width and y1 < height and x2 > 0 and y2 > 0 else "outside their photo"


def _by_photo(exemplars: Iterable[Exemplar]) -> list[list[Exemplar]]:
    """Exemplars of the same photo together; files in the order of their paths, then photos that are no files."""
    groups: dict[tuple[int, str | int], list[Exemplar]] = defaultdict(list)
    for exemplar in exemplars:
        is_file = isinstance(exemplar.image, str | os.PathLike)
        groups[(0, os.fspath(exemplar.image)) if is_file else (1, id(exemplar.image))].append(exemplar)  # type: ignore[arg-type]
    files = sorted(key for key in groups if key[0] == 0)
    return [groups[key] for key in [*files, *(key for key in groups if key[0] == 1)]]


def _identity(exemplars: Sequence[Exemplar]) -> list[Any]:
    """What the vectors of one photo's exemplars depend on, beside cropper and encoder."""
    image = exemplars[0].image
    if isinstance(image, str | os.PathLike):
        stat = Path(image).stat() if Path(image).is_file() else None
        state: list[Any] = [os.fspath(image), stat and stat.st_size, stat and stat.st_mtime_ns]
    else:
        photo = read_image(image)
        state = [list(photo.shape), hashlib.sha256(photo.tobytes()).hexdigest()]
    return [state, [exemplar.box_xyxy for exemplar in exemplars]]


def _look_at(look: Look, exemplars: Sequence[Exemplar]) -> Tensor:
    """(n, ...) what `look` makes of the exemplars of one photo."""
    image = exemplars[0].image
    photo = read_image(image)
    height, width = photo_hw(photo)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else exemplars[0].name
    for exemplar in exemplars:
        check_size((height, width), exemplar.photo_hw, f"photo {name}")
    boxes = [exemplar.box_xyxy or (0.0, 0.0, float(width), float(height)) for exemplar in exemplars]
    try:
        return look(photo, torch.tensor(boxes, dtype=torch.float32))
    except InvalidBoxError as error:
        raise InvalidBoxError(f"photo {name}, exemplars {[e.name for e in exemplars]}: {error}") from error
