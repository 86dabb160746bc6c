"""A YOLO data set as a COCO dictionary: photos, one text file of boxes for each, names in data.yaml or classes.txt.

Format (https://docs.ultralytics.com/datasets/detect/): one object a line, `class cx cy w h` in 0..1 of the upright
photo, or `class x1 y1 x2 y2 ...`, a polygon, which becomes its bounding box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.files.vocabulary import read_vocabulary

__all__ = ["read_yolo"]

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
NAME_FILES = ("data.yaml", "dataset.yaml", "classes.txt")


def read_yolo(
    folder: str | Path, split: str = "val", progress: Callable[[Iterable[Path]], Iterable[Path]] = iter
) -> dict[str, Any]:
    """The photos of one split with their boxes, as a COCO dictionary; photos without a text file have no boxes.

    Args:
        folder: holds data.yaml, or classes.txt beside `images/` and `labels/`.
        split: key of data.yaml, or subfolder of `images/`.
        progress: wraps the list of photos, such as `tqdm`.

    Returns:
        `images` (file_name relative to `folder`), `annotations` (bbox in pixels: x, y, width, height; `score` where a
        line has one, `segmentation` where it is an outline), `categories` (ids from 1, in the order of class numbers).

    Raises:
        AnnotationFileError: names or photos are missing, or a line is no object; file and line are named.
    """
    root = Path(folder)
    names, places = _names_and_places(root, split)
    photos = sorted(p for place in places for p in _photos(place))
    if not photos:
        raise AnnotationFileError(
            f"no photo of split {split!r} in {', '.join(map(str, places))} (looked for {', '.join(PHOTO_SUFFIXES)}); "
            "give the name of another split, or correct data.yaml"
        )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(progress(photos), 1):
        width, height = _upright_wh(photo)
        name = photo.relative_to(root).as_posix() if photo.is_relative_to(root) else photo.as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for category, box, score, outline in _objects(_label_file(photo), len(names), (width, height)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                | ({} if score is None else {"score": score})
                | ({} if outline is None else {"segmentation": [outline]})
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _names_and_places(root: Path, split: str) -> tuple[list[str], list[Path]]:
    """Names in the order of their class numbers, and the folders of the split's photos."""
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        raise AnnotationFileError(f"{root} holds none of {', '.join(NAME_FILES)}; is it the folder of a YOLO data set?")
    if file.suffix == ".txt":
        images = root / "images"
        return read_vocabulary(file), [images / split if (images / split).is_dir() else images]
    content = _read_yaml(file)
    names = content.get("names")
    if isinstance(names, dict):
        numbers = sorted(names)
        if numbers != list(range(len(numbers))):
            raise AnnotationFileError(f"{file}: `names` has the numbers {numbers[:5]}..., expected 0, 1, 2, ...")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise AnnotationFileError(f"{file}: `names` is {names!r}, expected a list of names or {{0: name, ...}}")
    if split not in content:
        splits = [key for key in ("train", "val", "test") if content.get(key)]
        raise AnnotationFileError(f"{file} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    base = root / str(content.get("path") or "")
    base = base if base.is_dir() else root  # `path` is often of the machine the file was written on
    given = content[split]
    return [str(name) for name in names], [
        base / str(place) for place in (given if isinstance(given, list) else [given])
    ]


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AnnotationFileError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise AnnotationFileError(f"{file} holds a {type(content).__name__}, expected keys such as names, train, val")
    return content


def _photos(place: Path) -> list[Path]:
    if place.is_file():  # a list of photos, one a line
        lines = place.read_text(encoding="utf-8-sig").splitlines()
        return [place.parent / line.strip() for line in lines if line.strip()]
    return [p for p in place.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES]


def _label_file(photo: Path) -> Path:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`, by the last folder called images; else beside the photo."""
    parts = list(photo.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _upright_wh(photo: Path) -> tuple[int, int]:
    try:
        with Image.open(photo) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = image.size
    except (OSError, SyntaxError) as error:
        raise AnnotationFileError(f"photo {photo} cannot be opened: {error}") from error
    return (height, width) if turned else (width, height)


def _objects(
    file: Path, num_classes: int, image_wh: tuple[int, int]
) -> list[tuple[int, list[float], float | None, list[float] | None]]:
    """(class number, [x, y, width, height] in pixels, confidence and outline if there are) of each line."""
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            category, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise AnnotationFileError(f"{file}, line {number}: {error}; expected numbers") from error
        if not 0 <= category < num_classes or category != int(category):
            raise AnnotationFileError(
                f"{file}, line {number}: class {category:g}, but there are {num_classes} names (0 to {num_classes - 1})"
            )
        score = values[4] if len(values) == 5 else None
        box = _box(values, image_wh, f"{file}, line {number}")
        outline = [round(v * image_wh[i % 2], 3) for i, v in enumerate(values)] if len(values) >= 6 else None
        found.append((int(category), box, score, outline))
    return found


def _box(values: list[float], image_wh: tuple[int, int], where: str) -> list[float]:
    width, height = image_wh
    if len(values) in (4, 5):  # a fifth number is a confidence
        cx, cy, w, h = values[:4]
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise AnnotationFileError(f"{where}: {len(values)} numbers after the class; expected 4, or an even number >= 6")
    if not all(-0.1 <= value <= 1.1 for value in corners):
        why = "is not in 0..1; YOLO boxes are shares of the photo"
        if all(-0.1 <= value <= 1.1 for value in values[:4]):
            why = "leaves the photo as cx, cy, width, height, which YOLO boxes are; was another order written?"
        raise AnnotationFileError(f"{where}: {values[:4]} {why}")
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in corners)
    return [round(x1 * width, 3), round(y1 * height, 3), round((x2 - x1) * width, 3), round((y2 - y1) * height, 3)]
