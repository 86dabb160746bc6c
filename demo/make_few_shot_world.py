"""Make the few-shot world: whole photos of one object each, of classes that neither demo model was trained on.

    python demo/make_few_shot_world.py --out data/demo_few_shot --seed 0

writes

    data/demo_few_shot/{train,val,test}/CLASS NAME/*.jpg    20, 5 and 20 photos of each of 48 classes
    data/demo_few_shot/world.json                           version, seed, sizes and a checksum

With ``--classes source-a`` or ``source-b`` it makes a world to fine-tune a ranker on: 192 classes that are not rare,
other ones in each; both have all colours, patterns and shapes, and no class is in two of the three worlds.

which ``rar_mmdet.classification.read_folders`` reads as it is. Nothing is done when that world is already there. The
same version and seed give the same bytes, whatever the number of workers.

What is held out: the classes, as combinations of colour, pattern and shape. All 48 are among the 174 rare classes of
the demo world (``world.rare_classes``). No picture of one, neither as the object in the middle nor as a neighbour, was
ever drawn to train the demo CLIP or the demo ranker.

What is not: their parts. Every colour, pattern and shape was seen in other classes, by the same renderer. As words,
rare names never were a caption of the CLIP, but they were among the wrong answers of the ranker's candidate lists, and
both tokenizers know their words. The fusion weights of ``configs/demo`` were fitted on the demo world's calibration
split, which has objects of rare classes. So a figure measured here is one for new combinations, not for new things.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm
from world import ATTRIBUTES, CLASS_NAMES, WORLD_VERSION, Thing, draw_photo, rare_classes
from world_files import drawing_pool, new_world, read_manifest, write_jpeg, write_manifest

WORLD, VERSION = "rar_mmdet few-shot demo", 1
DOMAIN = 5303  # first word of every seed drawn here; the demo world and the training scripts use others
NUM_CLASSES = 48
KEPT = (2, 8, 2)  # classes of each colour, pattern and shape, at least
WIDTH, HEIGHT = 128, 96
SIDES = (34.0, 64.0)  # longer side of the object in pixels, log-uniform
OFF_CENTRE = (0.04, 0.16)  # distance of its centre from that of the photo, in heights of the photo
SPLITS = ("train", "val", "test")
HELD_OUT = "held-out"
SOURCES = ("source-a", "source-b")
NUM_SOURCE_CLASSES = 192  # as Stanford Cars, the paper's second source, has 196


def held_out_classes(number: int = NUM_CLASSES) -> list[int]:
    """The rare classes (indices) that are most alike, in the order of ``CLASS_NAMES``.

    The one with the fewest look-alikes among those left, two of three attributes shared, is dropped until ``number``
    are left: classes without look-alikes would be told apart by any vectors. ``KEPT`` keeps all attributes in.
    """
    left = rare_classes()
    while len(left) > number:
        same = ATTRIBUTES[left][:, None] == ATTRIBUTES[left][None]
        may_go = (same.sum(1) > KEPT).all(1)
        left = np.delete(left, np.where(may_go, (same.sum(2) == 2).sum(1), len(left)).argmin())
    return left.tolist()


def source_classes(source: str) -> list[int]:
    """Classes (indices) of a source, of those that are not rare in the demo world."""
    known = np.setdiff1d(np.arange(len(CLASS_NAMES)), rare_classes())
    start = NUM_SOURCE_CLASSES * SOURCES.index(source)
    drawn = np.random.default_rng([DOMAIN, VERSION]).permutation(known)
    return sorted(drawn[start : start + NUM_SOURCE_CLASSES].tolist())


def classes_of(name: str) -> list[int]:
    """The classes of a world, by what ``--classes`` calls them."""
    return held_out_classes() if name == HELD_OUT else source_classes(name)


def place(rng: np.random.Generator, class_index: int) -> Thing:
    """The object of a photo: off-centre, but whole within the middle square that a centre crop keeps.

    Both models learned from crops with the object in the middle and lose more the farther off it is.
    """
    side = float(np.exp(rng.uniform(*np.log(SIDES))))
    distance, turn = rng.uniform(*OFF_CENTRE) * HEIGHT, rng.uniform(0, 2 * np.pi)
    return Thing(class_index, WIDTH / 2 + np.cos(turn) * distance, HEIGHT / 2 + np.sin(turn) * distance, side)


def photo_path(job: tuple[int, int, int]) -> Path:
    """Where a photo (split, class, number) lies under the world."""
    split, class_index, number = job
    return Path(SPLITS[split], CLASS_NAMES[class_index], f"{number:03d}.jpg")


def make_photo(root: Path, seed: int, job: tuple[int, int, int]) -> str:
    """Draw and write one photo; returns its checksum."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([DOMAIN, VERSION, WORLD_VERSION, seed, *job])
    photo, _ = draw_photo(rng, [place(rng, job[1])], WIDTH, HEIGHT)
    return hashlib.sha256(write_jpeg(root / photo_path(job), photo)).hexdigest()


def make_jobs(photos: tuple[int, int, int], classes: str = HELD_OUT) -> list[tuple[int, int, int]]:
    """Every photo of a world: split, class, number."""
    return [(split, c, n) for split, count in enumerate(photos) for c in classes_of(classes) for n in range(count)]


def digest(checksums: list[str]) -> str:
    """One checksum for those of all photos, in the order of ``make_jobs``."""
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def identity(seed: int, photos: tuple[int, int, int], classes: str = HELD_OUT) -> dict[str, Any]:
    """What decides the bytes of a world."""
    return {
        **({} if classes == HELD_OUT else {"classes": classes}),
        "world": WORLD,
        "version": [VERSION, WORLD_VERSION],
        "seed": seed,
        "photos_per_class": dict(zip(SPLITS, photos, strict=True)),
    }


def is_complete(root: Path, seed: int, photos: tuple[int, int, int], classes: str = HELD_OUT) -> bool:
    """Whether ``root`` holds exactly that world, every photo unchanged and none beside them."""
    manifest, wanted = read_manifest(root), identity(seed, photos, classes)
    if {key: manifest.get(key) for key in manifest if key != "sha256"} != wanted:
        return False
    paths = [root / photo_path(job) for job in make_jobs(photos, classes)]
    if set(root.glob("*/*/*")) != set(paths):
        return False
    return manifest.get("sha256") == digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])


def make_few_shot_world(
    out: Path,
    seed: int,
    photos: tuple[int, int, int] = (20, 5, 20),
    workers: int = 2,
    classes: str = HELD_OUT,
) -> bool:
    """Make a world at ``out`` unless it is there already; a killed run leaves no half world.

    Args:
        out: Folder to create; an older few-shot world there is replaced.
        seed: Seed of every draw. The classes do not depend on it.
        photos: Photos of each class in train, val and test.
        workers: Processes that draw.
        classes: "held-out", "source-a" or "source-b".

    Returns:
        Whether anything was drawn.

    Raises:
        FileExistsError: ``out`` holds something that is not a few-shot world.
    """
    if is_complete(out, seed, photos, classes):
        return False
    jobs = make_jobs(photos, classes)
    with new_world(out, WORLD, "few-shot world") as root:
        for folder in {photo_path(job).parent for job in jobs}:
            (root / folder).mkdir(parents=True)
        with drawing_pool(workers) as pool:
            drawn = pool.map(partial(make_photo, root, seed), jobs, chunksize=32)
            bar = tqdm(drawn, total=len(jobs), desc=f"few-shot world, seed {seed}", unit="photo", disable=None)
            checksums = list(bar)
        write_manifest(root, {**identity(seed, photos, classes), "sha256": digest(checksums)})
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("data/demo_few_shot")
    parser.add_argument("--out", type=Path, default=default, help=f"folder to create (default: {default})")
    parser.add_argument("--seed", type=int, default=0, help="which world (default: 0)")
    parser.add_argument(
        "--photos",
        type=int,
        nargs=3,
        default=(20, 5, 20),
        metavar=("TRAIN", "VAL", "TEST"),
        help="photos per class (default: 20 5 20)",
    )
    parser.add_argument(
        "--classes", choices=[HELD_OUT, *SOURCES], default=HELD_OUT, help=f"of what world (default: {HELD_OUT})"
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
        drawn = make_few_shot_world(args.out, args.seed, tuple(args.photos), args.workers, args.classes)
    except FileExistsError as error:
        sys.exit(f"make_few_shot_world: {error}")
    print(f"{args.out}: {'made' if drawn else 'already there'}, seed {args.seed}, {NUM_CLASSES} classes")


if __name__ == "__main__":
    main()
