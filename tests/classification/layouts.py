"""Miniature trees of every layout: three classes, one test photo each, as the published archives lie on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from rar_mmdet.classification import CATALOGUE


def photo(path: Path, grey: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), grey, dtype=np.uint8)).save(path)
    return path


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Names as CoOp's file has them, and the folders of SUN397 they come from.
COOP_NAMES = {
    "oxford_pets": ["american_bulldog", "pug", "sphynx"],
    "sun397": ["abbey", "outdoor apartment_building", "indoor apse"],
    "eurosat": ["Annual Crop Land", "Forest", "Highway or Road"],
    "stanford_cars": ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"],
}
SUN_FOLDERS = ["a/abbey", "a/apartment_building/outdoor", "a/apse/indoor"]


def coop(root: Path, name: str) -> None:
    spec = CATALOGUE[name]
    names = COOP_NAMES.get(name, ["first", "second thing", 'third\'s, "odd" one'])
    split: dict[str, list] = {}
    for part, count in (("train", 3), ("val", 1), ("test", 1)):
        split[part] = []
        for label in range(3):
            folder = SUN_FOLDERS[label] if name == "sun397" else f"class_{label}"
            for number in range(count):
                path = f"{folder}/{part}_{number}.jpg"
                photo(root / spec.folder / spec.photos / path, 60 * label + number)
                split[part].append([path, label, names[label]])
    text(root / spec.folder / spec.split_files[0], json.dumps(split))


def imagenet(root: Path) -> None:
    base = root / "imagenet"
    # The order of the file is not that of the labels; two classes share a name, as two pairs of ImageNet do.
    text(base / "classnames.txt", "n03773504 missile", "n01440764 tench", "n04008634 missile")
    for folder in ("n01440764", "n03773504", "n04008634"):
        for number in range(2):
            photo(base / "images" / "train" / folder / f"{folder}_{number}.JPEG")
        photo(base / "images" / "val" / folder / f"ILSVRC2012_val_{folder}.JPEG")
        text(base / "images" / "val" / folder / ".DS_Store", "")


def aircraft(root: Path) -> None:
    base = root / "fgvc_aircraft"
    text(base / "variants.txt", "707-320", "727-200", "A300B4")
    for part, start in (("train", 10), ("val", 20), ("test", 30)):
        names = ["727-200", "707-320", "A300B4"]
        text(base / f"images_variant_{part}.txt", *(f"{start + i:07d} {name}" for i, name in enumerate(names)))
        for number in range(3):
            photo(base / "images" / f"{start + number:07d}.jpg")


def raf_db(root: Path) -> None:
    base = root / "raf-db"
    lines = [f"train_{i:05d}.jpg {label}" for i, label in enumerate((5, 1, 4), 1)] + ["test_0001.jpg 7"]
    text(base / "EmoLabel" / "list_patition_label.txt", *lines)
    for line in lines:
        photo(base / "Image" / "aligned" / line.split()[0].replace(".jpg", "_aligned.jpg"))


def cub(root: Path) -> None:
    base = root / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    photos = [f"{name}/{name[4:]}_{number}.jpg" for name in names for number in range(2)]
    text(base / "classes.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    text(base / "images.txt", *(f"{i} {path}" for i, path in enumerate(photos, 1)))
    text(base / "image_class_labels.txt", *(f"{i} {(i + 1) // 2}" for i in range(1, 7)))
    text(base / "train_test_split.txt", *(f"{i} {i % 2}" for i in range(1, 7)))
    for path in photos:
        photo(base / "images" / path)


def dogs(root: Path) -> None:
    base = root / "stanford_dogs"
    folders = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog"]
    base.mkdir(parents=True)
    for part, numbers in (("train", (1, 2)), ("test", (3,))):
        files = [f"{folder}/{folder[:9]}_{number}.jpg" for folder in folders for number in numbers]
        cells = np.empty((len(files), 1), dtype=object)
        cells[:, 0] = files
        labels = np.repeat([1, 2, 3], len(numbers)).reshape(-1, 1)
        savemat(base / f"{part}_list.mat", {"file_list": cells, "labels": labels})
        for file in files:
            photo(base / "Images" / file)


def flowers_official(root: Path) -> None:
    base = root / "oxford_flowers"
    base.mkdir(parents=True, exist_ok=True)
    savemat(base / "setid.mat", {"trnid": [[2, 4]], "valid": [[1]], "tstid": [[3, 5]]})
    savemat(base / "imagelabels.mat", {"labels": [[1, 2, 3, 1, 2]]})
    text(base / "cat_to_name.json", json.dumps({"2": "hard-leaved pocket orchid", "1": "pink primrose", "3": "moon"}))
    for number in range(1, 6):
        photo(base / "jpg" / f"image_{number:05d}.jpg")


LAYOUTS = {
    "imagenet": imagenet,
    "fgvc_aircraft": aircraft,
    "raf_db": raf_db,
    "cub200": cub,
    "stanford_dogs": dogs,
    "flowers102_official": flowers_official,
}


def write(name: str, root: Path) -> Path:
    """The miniature of one set of the catalogue under `root`."""
    if name in LAYOUTS:
        LAYOUTS[name](root)
    else:
        coop(root, name)
    return root
