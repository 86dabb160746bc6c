"""Make the demo world: a synthetic large-vocabulary dataset in LVIS v1 format, drawn from a seed in seconds.

    python demo/make_world.py --out data/demo --seed 0

writes

    data/demo/annotations/lvis_demo_{train,calib,test}.json    600 categories, frequency counted on the train split
    data/demo/train2017/*.jpg                                  photos of the train and calib splits
    data/demo/val2017/*.jpg                                    photos of the test split
    data/demo/world.json                                       version, seed, sizes and checksums

Nothing is done when that world is already there. The same version and seed give the same bytes, whatever the number
of workers. No photo is in two splits. What is drawn, and what a number measured on it can and cannot mean, is in
demo/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm
from world import (
    ATTRIBUTES,
    CLASS_NAMES,
    COMMON_MAX,
    NUM_CLASSES,
    RARE_MAX,
    WORLD_VERSION,
    Thing,
    draw_photo,
    train_image_quota,
)
from world_files import drawing_pool, new_world, read_manifest, write_jpeg, write_manifest

WIDTH, HEIGHT = 480, 360
WORLD = "rar_mmdet demo"
DOMAIN = 4201  # first word of every seed drawn here; the training scripts use others
# Longer side of an object in pixels, by draw; COCO's area limits are 32 x 32 and 96 x 96 pixels.
SIZE_DRAWS = ((0.42, 16.0, 34.0), (0.38, 36.0, 90.0), (0.20, 100.0, 190.0))
TRAIN_PHOTOS = 400  # the number that the tail and its thresholds are made for
MAX_OVERLAP, TWINS = 0.25, 0.15
CONFUSABLE_NEGATIVES, OTHER_NEGATIVES, NOT_EXHAUSTIVE = 5, 20, 0.04


@dataclass(frozen=True)
class Split:
    """A part of the world: how many photos, where, and how strongly it follows the tail (1 as train, 0 not at all)."""

    name: str
    number: int
    photos: int
    folder: str
    tail: float


def make_splits(photos: tuple[int, int, int]) -> tuple[Split, ...]:
    """Train, calib and test. The last two flatten the tail, or AP_r would have hardly an object to be measured on."""
    tails, folders = (1.0, 0.5, 0.5), ("train2017", "train2017", "val2017")
    return tuple(Split(name, i, photos[i], folders[i], tails[i]) for i, name in enumerate(("train", "calib", "test")))


def deal_classes(rng: np.random.Generator, split: Split) -> list[int]:
    """Shuffled classes of the objects of a split, following its tail.

    Counts are rounded, not drawn, so that every seed has the same tail and rare classes are exactly those of
    ``rare_classes``.
    """
    quota = train_image_quota()
    quota = np.where(quota <= RARE_MAX, np.maximum(quota.round(), 1), np.maximum(quota.round(), RARE_MAX + 1))
    share = quota**split.tail
    expected = share * (quota.sum() / share.sum() * split.photos / TRAIN_PHOTOS)
    order = rng.permutation(NUM_CLASSES)
    start = 0.0 if split.tail == 1 and split.photos == TRAIN_PHOTOS else rng.random()
    counts = np.diff(np.floor(np.cumsum(expected[order]) + start + 1e-6), prepend=np.floor(start)).astype(int)
    return rng.permutation(np.repeat(order, counts)).tolist()


def deal_photo_sizes(rng: np.random.Generator, photos: int, total: int) -> np.ndarray:
    """Numbers of objects per photo, 3 to 12, that add up to about ``total``: (photos,) int."""
    sizes = rng.integers(3, 13, photos)
    while (missing := int(np.clip(total, 3 * photos, 12 * photos) - sizes.sum())) != 0:
        sizes[rng.integers(photos, size=abs(missing))] += np.sign(missing)
        sizes = sizes.clip(3, 12)
    return sizes


def _overlap(a: Thing, b: Thing) -> float:
    """Intersection of the two boxes over the smaller one, with boxes taken as squares."""
    width = min(a.cx + a.side / 2, b.cx + b.side / 2) - max(a.cx - a.side / 2, b.cx - b.side / 2)
    height = min(a.cy + a.side / 2, b.cy + b.side / 2) - max(a.cy - a.side / 2, b.cy - b.side / 2)
    return max(width, 0.0) * max(height, 0.0) / min(a.side, b.side) ** 2


def lay_out_photo(rng: np.random.Generator, classes: list[int]) -> list[Thing]:
    """Give every class a size and a place, back to front; one that finds no place is made smaller until it does."""
    things: list[Thing] = []
    for class_index in classes:
        _, low, high = SIZE_DRAWS[rng.choice(len(SIZE_DRAWS), p=[share for share, _, _ in SIZE_DRAWS])]
        side = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        while True:
            margin = side * (0.38 if rng.random() < 0.15 else 0.5)  # some are cut by the border
            thing = Thing(class_index, rng.uniform(margin, WIDTH - margin), rng.uniform(margin, HEIGHT - margin), side)
            if all(_overlap(thing, other) < MAX_OVERLAP for other in things):
                things.append(thing)
                break
            side = max(side * 0.97, SIZE_DRAWS[0][1])
    return [things[i] for i in rng.permutation(len(things))]


def lay_out_split(seed: int, split: Split) -> list[list[Thing]]:
    """Objects of every photo of a split. No class is dealt twice to a photo, but some objects bring a twin."""
    rng = np.random.default_rng([DOMAIN, WORLD_VERSION, seed, split.number])
    queue = deal_classes(rng, split)
    photos = []
    for size in deal_photo_sizes(rng, split.photos, len(queue)):
        classes: list[int] = []
        for _ in range(min(size, len(queue))):
            place = next((i for i, class_index in enumerate(queue) if class_index not in classes), 0)
            classes.append(queue.pop(place))
        if len(classes) < 12 and rng.random() < TWINS:
            classes.append(classes[0])
        photos.append(lay_out_photo(rng, classes))
    return photos


def _polygons(mask: np.ndarray) -> list[list[float]]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel().astype(float).tolist() for contour in contours if len(contour) >= 3]


def photo_id(split: Split, index: int) -> int:
    """Image id, unique in the world."""
    return split.number * 100_000 + index + 1


def make_photo(root: Path, seed: int, split: Split, job: tuple[int, list[Thing]]) -> list[dict[str, Any]]:
    """Draw and write one photo; returns its annotations (without ids), boxes tight around what can be seen."""
    cv2.setNumThreads(1)
    index, things = job
    rng = np.random.default_rng([DOMAIN, WORLD_VERSION, seed, split.number, 1 + index])
    photo, masks = draw_photo(rng, things, WIDTH, HEIGHT)
    write_jpeg(root / split.folder / f"{photo_id(split, index):012d}.jpg", photo)
    annotations = []
    for thing, mask in zip(things, masks, strict=True):
        polygons = _polygons(mask)
        if not polygons:
            continue
        (x1, x2), (y1, y2) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (0, 1))
        box = [float(x1), float(y1), float(x2 + 1 - x1), float(y2 + 1 - y1)]
        annotations.append(
            {
                "image_id": photo_id(split, index),
                "category_id": thing.class_index + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": polygons,
            }
        )
    return annotations


def describe_image(
    rng: np.random.Generator, split: Split, index: int, annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    """LVIS image entry. Negatives (absent): look-alikes of what is there, two attributes shared, and some others."""
    present = sorted({annotation["category_id"] - 1 for annotation in annotations})
    negatives: set[int] = set(rng.choice(NUM_CLASSES, OTHER_NEGATIVES, replace=False).tolist())
    for class_index in present:
        alike = np.flatnonzero((ATTRIBUTES[class_index] == ATTRIBUTES).sum(1) == 2)
        negatives.update(rng.choice(alike, CONFUSABLE_NEGATIVES, replace=False).tolist())
    image_id = photo_id(split, index)
    return {
        "id": image_id,
        "width": WIDTH,
        "height": HEIGHT,
        "license": 1,
        "flickr_url": "",
        "date_captured": "2024-03-20 00:00:00",
        "coco_url": f"http://images.cocodataset.org/{split.folder}/{image_id:012d}.jpg",
        "neg_category_ids": sorted(negative + 1 for negative in negatives.difference(present)),
        "not_exhaustive_category_ids": [class_index + 1 for class_index in present if rng.random() < NOT_EXHAUSTIVE],
    }


def describe_categories(train_photos: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """LVIS categories with image and instance counts of the train split and the frequency they amount to."""
    per_photo = [[annotation["category_id"] for annotation in annotations] for annotations in train_photos]
    instance_count = np.bincount([i for ids in per_photo for i in ids], minlength=NUM_CLASSES + 1)
    image_count = np.bincount([i for ids in per_photo for i in set(ids)], minlength=NUM_CLASSES + 1)
    categories = []
    for category_id, words in enumerate(CLASS_NAMES, 1):
        pattern, colour, shape = words.split()
        photos = int(image_count[category_id])
        categories.append(
            {
                "id": category_id,
                "name": words.replace(" ", "_"),
                "synset": f"{words.replace(' ', '_')}.n.01",
                "synonyms": [words.replace(" ", "_"), f"{colour}_{pattern}_{shape}"],
                "def": f"a {shape} that is {colour} and {pattern}",
                "image_count": photos,
                "instance_count": int(instance_count[category_id]),
                "frequency": "r" if photos <= RARE_MAX else "c" if photos <= COMMON_MAX else "f",
            }
        )
    return categories


def describe_split(
    seed: int, split: Split, per_photo: list[list[dict[str, Any]]], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    """The LVIS annotation file of a split."""
    rng = np.random.default_rng([DOMAIN, WORLD_VERSION, seed, split.number, 0])
    flat = [annotation for annotations in per_photo for annotation in annotations]
    info = {
        "description": f"Synthetic demo world, split {split.name}",
        "version": str(WORLD_VERSION),
        "seed": seed,
        "year": 2024,
        "frequency": f"photos of the train split that show the category: r <= {RARE_MAX}, c <= {COMMON_MAX}, f above; "
        "LVIS has 10 and 100 on 250 times as many photos",
        "area": "of the box, not of the outline",
        "not_exhaustive_category_ids": "flagged at random, as LVIS has them; every object is annotated all the same",
    }
    return {
        "info": info,
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": ""}],
        "categories": categories,
        "images": [describe_image(rng, split, i, annotations) for i, annotations in enumerate(per_photo)],
        "annotations": [{"id": split.number * 1_000_000 + i, **annotation} for i, annotation in enumerate(flat, 1)],
    }


def build(root: Path, seed: int, splits: tuple[Split, ...], workers: int) -> None:
    """Write a whole world under the empty folder ``root``."""
    (root / "annotations").mkdir()
    for split in splits:
        (root / split.folder).mkdir(exist_ok=True)
    layouts = [lay_out_split(seed, split) for split in splits]
    checksums: dict[str, str] = {}
    categories: list[dict[str, Any]] = []
    progress = tqdm(total=sum(map(len, layouts)), desc=f"demo world, seed {seed}", unit="photo", disable=None)
    with progress, drawing_pool(workers) as pool:
        for split, photos in zip(splits, layouts, strict=True):
            per_photo = []
            for annotations in pool.map(partial(make_photo, root, seed, split), enumerate(photos), chunksize=4):
                per_photo.append(annotations)
                progress.update()
            categories = categories or describe_categories(per_photo)  # the train split comes first
            text = json.dumps(describe_split(seed, split, per_photo, categories))
            (root / "annotations" / f"lvis_demo_{split.name}.json").write_text(text)
            checksums[split.name] = hashlib.sha256(text.encode()).hexdigest()
    write_manifest(root, {**identity(seed, splits), "sha256": checksums})


def identity(seed: int, splits: tuple[Split, ...]) -> dict[str, Any]:
    """What decides the bytes of a world."""
    return {
        "world": WORLD,
        "version": WORLD_VERSION,
        "seed": seed,
        "photos": {split.name: split.photos for split in splits},
    }


def is_complete(root: Path, wanted: dict[str, Any]) -> bool:
    """Whether ``root`` holds exactly that world: its manifest, unchanged annotations and the number of photos."""
    manifest = read_manifest(root)
    if {key: manifest.get(key) for key in wanted} != wanted:
        return False
    files = {name: root / "annotations" / f"lvis_demo_{name}.json" for name in wanted["photos"]}
    if not all(
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == manifest["sha256"][name]
        for name, path in files.items()
    ):
        return False
    return sum(1 for _ in root.glob("*2017/*.jpg")) == sum(wanted["photos"].values())


def make_world(out: Path, seed: int, photos: tuple[int, int, int] = (400, 120, 280), workers: int = 2) -> bool:
    """Make a world at ``out`` unless it is there already.

    The world is built beside ``out`` and moved there when it is whole, so a killed run leaves no half world; an
    older world at ``out`` is replaced.

    Args:
        out: Folder to create.
        seed: Seed of every draw except the tail, which belongs to the version.
        photos: Photos of the train, calib and test split.
        workers: Processes that draw.

    Returns:
        Whether anything was drawn.

    Raises:
        FileExistsError: ``out`` holds something that is not a demo world.
    """
    splits = make_splits(photos)
    if is_complete(out, identity(seed, splits)):
        return False
    with new_world(out, WORLD, "demo world") as root:
        build(root, seed, splits, workers)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to create (default: data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="which world; the published numbers use 0, 1 and 2")
    parser.add_argument(
        "--photos",
        type=int,
        nargs=3,
        default=(400, 120, 280),
        metavar=("TRAIN", "CALIB", "TEST"),
        help="photos per split (default: 400 120 280)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help="processes that draw; no influence on the bytes",
    )
    args = parser.parse_args()
    if args.seed < 0 or min(args.photos) < 1 or args.workers < 1:
        parser.error("--seed must not be negative; --photos and --workers must be at least 1")
    try:
        drawn = make_world(args.out, args.seed, tuple(args.photos), args.workers)
    except FileExistsError as error:
        sys.exit(f"make_world: {error}")
    print(f"{args.out}: {'made' if drawn else 'already there'}, seed {args.seed}, version {WORLD_VERSION}")


if __name__ == "__main__":
    main()
