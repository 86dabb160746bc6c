"""`read_dataset`: the published sets by name, each from the files its authors, or CoOp's, gave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rar_mmdet.classification.catalogue import SetSpec, find_spec
from rar_mmdet.classification.dataset import SPLITS, Example, PhotoDataset, digest_files, digest_text
from rar_mmdet.classification.reading import (
    check_counts as counts_must_be_published,
)
from rar_mmdet.classification.reading import (
    check_photos,
    load_json_file,
    plain_id,
    plain_name,
    read_lines,
    read_mat,
    split_paths,
)
from rar_mmdet.errors import DatasetError, MissingAssetError

__all__ = ["read_dataset"]

# (label, id) of the photos of each part
Rows = dict[str, list[tuple[int, str]]]

RAF_EMOTIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # labels 1 to 7


@dataclass(frozen=True)
class Contents:
    """What a layout says, before photos are looked for."""

    rows: Rows
    prompt_names: Sequence[str]
    display_names: Sequence[str]
    digest: str
    file_of: Callable[[str], str] = str  # id -> path under the folder of photos, where they differ


def read_dataset(name: str, root: str | Path, *, check_counts: bool = True) -> PhotoDataset:
    """A set of the catalogue.

    Args:
        name: `flowers102`, `imagenet`, ...; see `rar_mmdet.classification.CATALOGUE`.
        root: the folder that holds the folders of the sets, laid out as CoOp's DATASETS.md says.
        check_counts: refuse a set whose numbers of classes and photos are not the published ones. `False` for a part
            of a set; `PhotoDataset.describe` then says that they were not checked.

    Raises:
        MissingAssetError: a split file or photos are missing; the message says where they must lie.
        DatasetError: a file is damaged, or the numbers are not the published ones.
        HostError: SciPy is needed for .mat files and is not installed.
    """
    spec, root = find_spec(name), Path(root).expanduser()
    paths = split_paths(spec, root)
    contents = LAYOUTS[spec.layout](spec, root, paths)
    folder = root / spec.folder / spec.photos

    def example(label: int, photo: str) -> Example:
        path = folder / contents.file_of(photo)
        return Example(photo, str(path), label, contents.display_names[label], contents.prompt_names[label])

    parts = {split: tuple(example(*row) for row in contents.rows.get(split, [])) for split in SPLITS}
    dataset = PhotoDataset(
        name=spec.name,
        display_names=tuple(contents.display_names),
        prompt_names=tuple(contents.prompt_names),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        split_sha256=contents.digest,
        split_source=", ".join(f"{spec.folder}/{file}" for file in spec.split_files),
        templates=(spec.template,),
        template_source=spec.template_source,
    )
    if check_counts:
        counts_must_be_published(spec, dataset)
    check_photos(spec.name, (photo for split in SPLITS for photo in parts[split]), folder)
    return replace(dataset, counts_checked=check_counts)


# --- One function a layout: what the files say


def _coop(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """CoOp's JSON: {train, val, test} of [relative path, label, name]."""
    (path,) = paths
    content = load_json_file(path, "split file")
    rows: Rows = {}
    names: dict[int, str] = {}
    first_photo: dict[int, str] = {}
    for split in SPLITS:
        items = content.get(split) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise DatasetError(f"split file {path} has no list {split!r}; expected CoOp's {{train, val, test}}")
        rows[split] = []
        for place, item in enumerate(items):
            where = f"{path.name}, {split}[{place}]"
            if not (isinstance(item, list) and len(item) == 3 and type(item[1]) is int and item[1] >= 0):
                raise DatasetError(f"{where} = {item!r:.80}, expected [path, label, name]")
            photo, label, name = plain_id(item[0], where), item[1], plain_name(item[2], where)
            if names.setdefault(label, name) != name:
                raise DatasetError(f"{where}: label {label} is called {name!r} here and {names[label]!r} before")
            first_photo.setdefault(label, photo)
            rows[split].append((label, photo))
    missing = set(range(max(names, default=-1) + 1)) - set(names)
    if missing:
        raise DatasetError(f"{path}: no photo of label {min(missing)}; labels must be 0 to {max(names)} without gaps")
    prompts = [names[label] for label in sorted(names)]
    display = [DISPLAY.get(spec.name, _as_prompt)(names[label], first_photo[label]) for label in sorted(names)]
    return Contents(rows, prompts, display, digest_files(paths))


def _as_prompt(name: str, photo: str) -> str:
    return name


def _breed(name: str, photo: str) -> str:
    """ "english cocker spaniel" -> "English Cocker Spaniel"."""
    return " ".join(word[:1].upper() + word[1:] for word in name.split())


def _scene(name: str, photo: str) -> str:
    """CoOp turns SUN's folders round ("outdoor apartment building"); people say them in the folder's own order."""
    return plain_name(" ".join(photo.split("/")[1:-1]) or name, photo)


# Sets whose names people write otherwise than CoOp's prompts do.
DISPLAY: dict[str, Callable[[str, str], str]] = {"oxford_pets": _breed, "sun397": _scene}


def _imagenet(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """classnames.txt ("n01440764 tench"), folders of photos; labels in the order of the folders' names, as in CoOp."""
    where = paths[0].name
    names = {}
    for line in read_lines(paths[0], "class names"):
        folder, _, name = line.partition(" ")
        names[folder] = plain_name(name, f"{where}, {folder}")
    labels = {folder: label for label, folder in enumerate(sorted(names))}
    rows: Rows = {"val": []}
    for split, folder in (("train", "train"), ("test", "val")):
        rows[split] = []
        base = root / spec.folder / spec.photos / folder
        if not base.is_dir():
            raise MissingAssetError(f"{spec.name}: the photos must lie at {base.absolute()}/n01440764/... and do not")
        for own in sorted(entry.name for entry in base.iterdir() if entry.is_dir()):
            if own not in labels:
                raise DatasetError(f"{spec.name}: {where} has no name for the folder {folder}/{own}")
            photos = sorted(photo.name for photo in (base / own).iterdir() if not photo.name.startswith("."))
            rows[split] += [(labels[own], f"{folder}/{own}/{photo}") for photo in photos]
    ordered = [names[folder] for folder in sorted(names)]
    listed = (photo for split in ("train", "test") for _, photo in rows[split])
    return Contents(rows, ordered, ordered, digest_text([digest_files(paths), *listed]))


def _aircraft(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """variants.txt in label order; one file a part with lines "1025794 707-320"."""
    variants = read_lines(paths[0], "variants")
    label_of = {name: label for label, name in enumerate(variants)}
    rows: Rows = {}
    for split, path in zip(SPLITS, paths[1:], strict=True):
        rows[split] = []
        for line in read_lines(path, "split file"):
            photo, _, name = line.partition(" ")
            if name not in label_of:
                raise DatasetError(f"{path}: {name!r} of photo {photo} is not in variants.txt")
            rows[split].append((label_of[name], plain_id(f"{photo}.jpg", path.name)))
    names = [plain_name(name, paths[0].name) for name in variants]
    return Contents(rows, names, names, digest_files(paths))


def _flowers_official(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """The authors' numbers of photos per part, 1-based labels of all photos, names by label."""
    parts = read_mat(paths[0], "trnid", "valid", "tstid")
    (labels,) = read_mat(paths[1], "labels")
    labels = labels.reshape(-1).astype(int)
    names = load_json_file(paths[2], "names of the flowers")
    if not isinstance(names, dict):
        raise DatasetError(f'{paths[2]} must be a record {{"1": "pink primrose", ...}}')
    ordered = _numbered(names, paths[2])
    rows: Rows = {}
    for split, numbers in zip(SPLITS, parts, strict=True):
        rows[split] = []
        for number in numbers.reshape(-1).astype(int).tolist():
            if not (0 < number <= len(labels) and 0 < labels[number - 1] <= len(ordered)):
                raise DatasetError(f"{paths[0].name}: photo {number} has no label in {paths[1].name}")
            rows[split].append((int(labels[number - 1]) - 1, f"image_{number:05d}.jpg"))
    return Contents(rows, ordered, ordered, digest_files(paths))


def _numbered(names: dict[str, Any], path: Path) -> list[str]:
    """Names under the keys "1", "2", ... in order."""
    keys = [str(number) for number in range(1, len(names) + 1)]
    missing = [key for key in keys if key not in names]
    if missing:
        raise DatasetError(f"{path} has no name of class {missing[0]}; expected keys 1 to {len(names)}")
    return [plain_name(names[key], path.name) for key in keys]


def _raf_db(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """Lines "train_00001.jpg 5"; the part is in the name of the photo, labels are 1 to 7."""
    (path,) = paths
    rows: Rows = {split: [] for split in SPLITS}
    for line in read_lines(path, "split file"):
        photo, _, label = line.partition(" ")
        split = photo.partition("_")[0]
        if split not in ("train", "test") or label.strip() not in map(str, range(1, 8)):
            raise DatasetError(f'{path}: {line!r}, expected lines such as "train_00001.jpg 5" with labels 1 to 7')
        rows[split].append((int(label) - 1, plain_id(photo, path.name)))
    return Contents(
        rows, RAF_EMOTIONS, RAF_EMOTIONS, digest_files(paths), lambda photo: f"{photo.removesuffix('.jpg')}_aligned.jpg"
    )


def _cub(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """Four tables with the photo's, or the class's, number first."""
    photos, labels, is_train, classes = (_table(path) for path in paths)
    for path, table in zip(paths[1:3], (labels, is_train), strict=True):
        if table.keys() != photos.keys():
            odd = min(table.keys() ^ photos.keys())
            raise DatasetError(f"{path}: photo number {odd} is here or in images.txt, and not in both")
    names = [plain_name(name.partition(".")[2] or name, paths[3].name) for name in classes.values()]
    label_of = {number: label for label, number in enumerate(classes)}
    rows: Rows = {split: [] for split in SPLITS}
    for number, photo in photos.items():
        if labels[number] not in label_of:
            raise DatasetError(f"{paths[1]}: photo {number} has class {labels[number]}, which classes.txt lacks")
        split = {"1": "train", "0": "test"}.get(is_train[number])
        if split is None:
            raise DatasetError(f"{paths[2]}: photo {number} has {is_train[number]!r}, expected 1 (train) or 0 (test)")
        rows[split].append((label_of[labels[number]], plain_id(photo, paths[0].name)))
    return Contents(rows, names, names, digest_files(paths))


def _table(path: Path) -> dict[str, str]:
    """Lines "number value" in order."""
    table: dict[str, str] = {}
    for line in read_lines(path, "table"):
        number, _, value = line.partition(" ")
        if not number.isdigit() or not value or number in table:
            raise DatasetError(f"{path}: line {line!r}, expected a number that is new, a space and a value")
        table[number] = value.strip()
    return table


def _dogs(spec: SetSpec, root: Path, paths: Sequence[Path]) -> Contents:
    """Two .mat files with `file_list` ("n02085620-Chihuahua/n02085620_5927.jpg") and 1-based `labels`."""
    rows: Rows = {"val": []}
    names: dict[int, str] = {}
    for split, path in zip(("train", "test"), paths, strict=True):
        files, labels = read_mat(path, "file_list", "labels")
        rows[split] = []
        for file, label in zip(_cells(files), labels.reshape(-1).astype(int).tolist(), strict=True):
            photo = plain_id(file, path.name)
            name = plain_name(photo.split("/")[0].partition("-")[2], path.name)
            if names.setdefault(label - 1, name) != name:
                raise DatasetError(f"{path}: label {label} is called {name!r} and {names[label - 1]!r}")
            rows[split].append((label - 1, photo))
    if sorted(names) != list(range(len(names))):
        raise DatasetError(f"{paths[0]}: labels are {sorted(names)[:3]}..., expected 1 to {len(names)} without gaps")
    ordered = [names[label] for label in range(len(names))]
    return Contents(rows, ordered, ordered, digest_files(paths))


def _cells(cells: Any) -> Iterable[str]:
    """The texts of a MATLAB cell array."""
    return (str(cell.reshape(-1)[0]) if hasattr(cell, "reshape") else str(cell) for cell in cells.reshape(-1))


LAYOUTS: dict[str, Callable[[SetSpec, Path, Sequence[Path]], Contents]] = {
    "coop": _coop,
    "imagenet": _imagenet,
    "fgvc_aircraft": _aircraft,
    "flowers_official": _flowers_official,
    "raf_db": _raf_db,
    "cub": _cub,
    "dogs": _dogs,
}
