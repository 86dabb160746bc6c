"""Photos of one's own: a folder per class, a CSV file, or any data set of torchvision's kind."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rar_mmdet.classification.dataset import SPLITS, Example, PhotoDataset, digest_files, digest_text
from rar_mmdet.classification.reading import check_photos, plain_id, plain_name
from rar_mmdet.errors import DatasetError, MissingAssetError
from rar_mmdet.files.text import decode_text, read_bytes

__all__ = ["IndexedPhotos", "from_torchvision", "read_csv", "read_folders"]

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEMPLATES = ("a photo of a {}.",)
TEMPLATE_SOURCE = "OpenAI's CLIP, for photos of any kind"


def read_folders(root: str | Path, *, name: str = "", templates: Sequence[str] = TEMPLATES) -> PhotoDataset:
    """`root/test/CLASS/photo.jpg`, and `root/train/...` and `root/val/...` where there are any.

    The names of the class folders, with spaces for underscores, are the names of the classes; labels are in the order
    of the folders' names over all parts. Hidden files are left out without a word, others that are no photos counted.

    Args:
        root: the folder.
        name: what results call the set; the folder's name by default.
        templates: sentences the names are put into.

    Raises:
        MissingAssetError: there is no folder `test`.
        DatasetError: no class, or a class folder without a name.
    """
    root = Path(root).expanduser()
    name = name or root.name
    if not (root / "test").is_dir():
        raise MissingAssetError(
            f"{name}: the photos to recognise must lie at {(root / 'test').absolute()}/CLASS/PHOTO.jpg, exemplars at "
            f"{(root / 'train').absolute()}/CLASS/PHOTO.jpg. Photos that are in no part are not split here: move them "
            "yourself, or list them in a CSV file"
        )
    found = {split: _class_folders(root / split) for split in SPLITS}
    classes = sorted({folder for folders in found.values() for folder in folders})
    names = [plain_name(folder, f"{name}, class folder") for folder in classes]
    label_of = {folder: label for label, folder in enumerate(classes)}
    left_out: Counter[str] = Counter()
    parts: dict[str, tuple[Example, ...]] = {}
    for split, folders in found.items():
        examples = []
        for folder in folders:
            label = label_of[folder]
            for photo in sorted(entry.name for entry in (root / split / folder).iterdir() if entry.name[0] != "."):
                if Path(photo).suffix.lower() not in SUFFIXES:
                    left_out[Path(photo).suffix or photo] += 1
                    continue
                photo_id = f"{split}/{folder}/{photo}"
                examples.append(Example(photo_id, str(root / photo_id), label, names[label], names[label]))
        parts[split] = tuple(examples)
    if left_out:
        told = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(5))
        logger.warning("%s: left out what is no photo: %s", root, told)
    _tell_about_classes_without_exemplars(name, parts, names)
    listing = (f"{example.id} {example.label}" for split in SPLITS for example in parts[split])
    return PhotoDataset(
        name=name,
        display_names=tuple(names),
        prompt_names=tuple(names),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        split_sha256=digest_text(listing),
        split_source=f"the folders under {root.name}",
        templates=tuple(templates),
        template_source=TEMPLATE_SOURCE if tuple(templates) == TEMPLATES else "given",
    )


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def read_csv(
    file: str | Path, photos: str | Path, *, name: str = "", templates: Sequence[str] = TEMPLATES
) -> PhotoDataset:
    """A table with the columns `path`, `class` and `split`, and where wanted `label`, `prompt_name`, `id`.

    `class` is the name people read. `prompt_name` is what goes into templates; without it the same, with spaces for
    underscores. Labels are 0, 1, ... in the order of the sorted class names; a column `label` decides instead, and
    lets two classes have one name. Rows are comma-separated, or by semicolon or tab where the first line is.

    Args:
        file: the table; UTF-8, or what its byte order mark says.
        photos: folder that `path` starts from.
        name: what results call the set; the file's name by default.
        templates: sentences the names are put into.

    Raises:
        MissingAssetError: the file or photos are not there.
        DatasetError: a column or value is missing or contradicts another; the message has the line.
    """
    file, photos = Path(file).expanduser(), Path(photos).expanduser()
    name = name or file.stem
    rows = _csv_rows(file)
    has_labels = "label" in rows[0][1]
    place = {own: label for label, own in enumerate(sorted({row["class"] for _, row in rows}))}
    display: dict[int, str] = {}
    prompts: dict[int, str] = {}
    parts: dict[str, list[tuple[str, str, int]]] = {split: [] for split in SPLITS}
    for line, row in rows:
        where = f"{file}, line {line}"
        if row["split"] not in SPLITS:
            raise DatasetError(f"{where}: split {row['split']!r}, expected one of {', '.join(SPLITS)}")
        label = _whole(row["label"], where) if has_labels else place[row["class"]]
        prompt = plain_name(row.get("prompt_name") or row["class"], where)
        shown = row["class"]
        if (display.setdefault(label, shown), prompts.setdefault(label, prompt)) != (shown, prompt):
            raise DatasetError(
                f"{where}: class {label} is called {(shown, prompt)} here and {(display[label], prompts[label])} before"
            )
        path = plain_id(row["path"], where)
        parts[row["split"]].append((row.get("id") or path, str(photos / path), label))
    if sorted(display) != list(range(len(display))):
        gap = min(set(range(len(display))) - set(display))
        raise DatasetError(f"{file}: no row of label {gap}; labels must be 0, 1, ... without gaps")
    examples = {
        split: tuple(Example(photo, path, label, display[label], prompts[label]) for photo, path, label in own)
        for split, own in parts.items()
    }
    check_photos(name, (example for split in SPLITS for example in examples[split]), photos)
    names = [display[label] for label in range(len(display))]
    _tell_about_classes_without_exemplars(name, examples, names)
    return PhotoDataset(
        name=name,
        display_names=tuple(names),
        prompt_names=tuple(prompts[label] for label in range(len(display))),
        train=examples["train"],
        val=examples["val"],
        test=examples["test"],
        split_sha256=digest_files([file]),
        split_source=file.name,
        templates=tuple(templates),
        template_source=TEMPLATE_SOURCE if tuple(templates) == TEMPLATES else "given",
    )


def _csv_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a table with the needed columns; every needed cell is filled."""
    where = f"table {file}"
    text = decode_text(read_bytes(str(file), where, DatasetError), where, DatasetError)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns = [(column or "").strip().lower() for column in reader.fieldnames or []]
    missing = [column for column in ("path", "class", "split") if column not in columns]
    if missing:
        advice = ""
        if "split" in missing:
            advice = ". Which photos are for testing is for you to say: nothing is split here"
        raise DatasetError(f"{where} has no column {missing[0]!r}; its first line is {first.strip()!r:.80}{advice}")
    reader.fieldnames = columns
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DatasetError(f"{where}, line {reader.line_num}: another number of cells than of columns")
            clean = {column: value.strip() for column, value in row.items()}
            empty = [column for column in ("path", "class", "split") if not clean[column]]
            if empty:
                raise DatasetError(f"{where}, line {reader.line_num}: {empty[0]} is empty")
            rows.append((reader.line_num, clean))
    except csv.Error as error:
        raise DatasetError(f"{where}, line {reader.line_num}: {error}") from error
    if not rows:
        raise DatasetError(f"{where} has no rows")
    return rows


def _whole(value: str, where: str) -> int:
    if not value.isdecimal():
        raise DatasetError(f"{where}: label {value!r} must be 0, 1, 2, ...")
    return int(value)


class IndexedPhotos(Protocol):
    """What a data set of torchvision's kind is: `dataset[i]` is (photo, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_torchvision(
    name: str,
    *,
    test: IndexedPhotos,
    train: IndexedPhotos | None = None,
    val: IndexedPhotos | None = None,
    class_names: Sequence[str],
    display_names: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[int]] | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> PhotoDataset:
    """Data sets that give (photo, label) for an index: torchvision's own, or yours.

        test = torchvision.datasets.OxfordIIITPet("data", split="test")
        from_torchvision("pets", test=test, class_names=test.classes)

    Mind that torchvision's test parts are CoOp's for ImageNet, Pets, Cars and Aircraft only. Photos are read when they
    are needed and kept nowhere. Their ids are "test/0", "test/1", ...

    Args:
        name: what results call the set.
        test: photos to recognise. Without transforms: what a photo is cropped to is the recogniser's business.
        train: exemplars.
        val: for settings tuned on them.
        class_names: C names for templates, in label order; most of torchvision's sets have them as `classes`.
        display_names: C names for people and language models; `None`: the same.
        labels: of each part, so that no photo need be read for its label. `None`: each photo is read once.
        templates: sentences the names are put into.

    Raises:
        DatasetError: a label outside the names, a set with transforms, or another number of labels than of photos.
    """
    prompts = tuple(plain_name(value, f"{name}, class_names") for value in class_names)
    shown = prompts if display_names is None else tuple(display_names)
    if len(shown) != len(prompts):
        raise DatasetError(f"{name}: {len(prompts)} class_names but {len(shown)} display_names")
    parts = {
        split: _indexed(name, split, source, None if labels is None else labels.get(split), prompts, shown)
        for split, source in (("train", train), ("val", val), ("test", test))
    }
    listing = (f"{example.id} {example.label}" for split in SPLITS for example in parts[split])
    return PhotoDataset(
        name=name,
        display_names=shown,
        prompt_names=prompts,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        split_sha256=digest_text(listing),
        split_source="the order of the data sets given",
        templates=tuple(templates),
        template_source=TEMPLATE_SOURCE if tuple(templates) == TEMPLATES else "given",
    )


def _indexed(
    name: str,
    split: str,
    source: IndexedPhotos | None,
    given: Sequence[int] | None,
    prompts: Sequence[str],
    shown: Sequence[str],
) -> tuple[Example, ...]:
    """The photos of one part."""
    if source is None:
        return ()
    examples = []
    for index, label in enumerate(_labels(name, split, source, given)):
        where = f"{name}, {split}[{index}]"
        if not 0 <= label < len(prompts):
            raise DatasetError(f"{where}: label {label}, but there are {len(prompts)} class_names")
        loader = _loader(source, index)
        examples.append(Example(f"{split}/{index}", where, label, shown[label], prompts[label], loader))
    return tuple(examples)


def _loader(source: IndexedPhotos, index: int) -> Callable[[], Any]:
    return lambda: source[index][0]


def _labels(name: str, split: str, source: IndexedPhotos, given: Sequence[int] | None) -> list[int]:
    """The label of every photo of a part."""
    # torchvision's own base class has these two; a set of the user's need not.
    if any(getattr(source, attribute, None) is not None for attribute in ("transform", "transforms")):
        raise DatasetError(f"{name}, {split}: the data set has transforms; make it without, so that photos come whole")
    if given is not None and len(given) != len(source):
        raise DatasetError(f"{name}, {split}: {len(source)} photos but {len(given)} labels")
    values = given if given is not None else [source[index][1] for index in range(len(source))]
    whole = []
    for index, value in enumerate(values):
        try:
            label = int(value)
        except (TypeError, ValueError):
            label = None
        if label is None or label != value:
            raise DatasetError(f"{name}, {split}[{index}]: label {value!r:.60} is no whole number")
        whole.append(label)
    return whole


def _tell_about_classes_without_exemplars(
    name: str, parts: Mapping[str, Sequence[Example]], names: Sequence[str]
) -> None:
    if parts["train"]:
        bare = sorted(set(range(len(names))) - {example.label for example in parts["train"]})
        if bare:
            told = ", ".join(names[label] for label in bare[:5]) + (" ..." if len(bare) > 5 else "")
            logger.warning("%s: %d of %d classes have no exemplars: %s", name, len(bare), len(names), told)
