"""Which photos of the train part are exemplars: published lists, the release's rule, and draws of our own, as JSON."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rar_mmdet.classification.dataset import Example, PhotoDataset, digest_text
from rar_mmdet.classification.reading import load_json_file
from rar_mmdet.errors import DatasetError, MissingAssetError

__all__ = ["Draw", "draw_first", "draw_seeded", "read_draw", "stratified_sample", "whole_train", "write_draw"]

logger = logging.getLogger(__name__)

FORMAT = "rar_mmdet few-shot list 1"


@dataclass(frozen=True)
class Draw:
    """The exemplars of one run, by class and then in the order they were drawn."""

    dataset: str
    rule: str  # how they were chosen, in words
    examples: tuple[Example, ...]  # a photo may stand here twice: CoOp fills classes that are short of photos so
    split_sha256: str  # of the split they were drawn from
    shots: int | None = None  # for each class; None: all of the train part
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def sha256(self) -> str:
        """Equal for equal exemplars in equal order."""
        return digest_text(f"{example.id} {example.label}" for example in self.examples)

    def describe(self) -> dict[str, Any]:
        """What every result must say about its exemplars."""
        return {
            "rule": self.rule,
            "shots": self.shots,
            "seed": self.seed,
            "exemplars": len(self),
            "sha256": self.sha256,
        }


def draw_first(dataset: PhotoDataset, shots: int) -> Draw:
    """The first `shots` photos of each class in the order of the split file: what RAR's release does.

    (Few_shot/build_memory.ipynb, cell 2.) There is no seed, and so no spread to report.

    Raises:
        DatasetError: `shots` is not at least 1, or there is no train part.
    """
    pools = _pools(dataset, shots)
    chosen = [example for label in sorted(pools) for example in pools[label][:shots]]
    return Draw(
        dataset.name, "the first of each class in the split's order", tuple(chosen), dataset.split_sha256, shots
    )


def draw_seeded(dataset: PhotoDataset, shots: int, seed: int) -> Draw:
    """`shots` photos of each class at random, without replacement; all of a class that has fewer.

    The choice of a class depends on the seed and the ids of its own photos alone, whatever their order. Draws of one
    seed are nested: 4 shots are the first 4 of 16.

    Raises:
        DatasetError: `shots` is not at least 1, or there is no train part.
    """
    pools = _pools(dataset, shots)
    chosen = []
    for label in sorted(pools):
        pool = sorted(pools[label], key=lambda example: example.id)
        random.Random(f"{seed}/{label}").shuffle(pool)
        chosen += pool[:shots]
    rule = "drawn by rar_mmdet, without replacement"
    return Draw(dataset.name, rule, tuple(chosen), dataset.split_sha256, shots, seed)


def whole_train(dataset: PhotoDataset) -> Draw:
    """All of the train part, by class.

    Raises:
        DatasetError: there is no train part.
    """
    pools = _pools(dataset, 1)
    chosen = tuple(example for label in sorted(pools) for example in pools[label])
    return Draw(dataset.name, "the whole train part", chosen, dataset.split_sha256)


def write_draw(draw: Draw, file: str | Path) -> None:
    """Write a list as JSON, for `read_draw`."""
    content = {
        "format": FORMAT,
        "dataset": draw.dataset,
        "split_sha256": draw.split_sha256,
        "rule": draw.rule,
        "shots": draw.shots,
        "seed": draw.seed,
        "examples": [{"id": example.id, "label": example.label} for example in draw.examples],
    }
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_draw(file: str | Path, dataset: PhotoDataset, *, shots: int | None = None, seed: int | None = None) -> Draw:
    """A list written by `write_draw`, or one of CoOp's draws as JSON.

    CoOp's own lists are pickles, which are not read. The same draws as JSON, for seeds 1 to 3 and 1 to 16 shots, are
    in `indices/` of github.com/linzhiqiu/cross_modal_adaptation (for ImageNet its own draws): records
    `{"train": {"data": [{"impath", "label", "classname"}]}}`, of which `impath` ends with the id of a photo.

    Args:
        file: the list.
        dataset: what it was drawn from.
        shots: what the list should hold for each class; `None`: as the list says, or what it holds.
        seed: what results say; `None`: as the list says.

    Raises:
        MissingAssetError: there is no such file.
        DatasetError: it is a pickle or damaged, of another data set or split, names photos that are not in the train
            part, or has another number for each class than `shots`.
    """
    file = Path(file)
    if not file.is_file():
        raise MissingAssetError(f"there is no few-shot list at {file.absolute()}; write one with write_draw")
    if file.suffix in (".pkl", ".pickle"):
        raise DatasetError(
            f"{file} is a pickle, which can run any code and is not read. CoOp's draws as JSON are in indices/ of "
            "github.com/linzhiqiu/cross_modal_adaptation; or use draw_seeded"
        )
    content = load_json_file(file, "few-shot list")
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        examples = _own_list(content, file, dataset)
        rule, list_shots, list_seed = str(content.get("rule")), content.get("shots"), content.get("seed")
    else:
        examples = _published_list(content, file, dataset)
        rule, list_shots, list_seed = f"CoOp's draw, {file.name}", None, None
    expected = shots if shots is not None else list_shots
    counts = Counter(example.label for example in examples)
    if expected is not None:
        _check_shots(file, dataset, counts, expected)
    elif counts and len(counts) == dataset.num_classes and len(set(counts.values())) == 1:
        expected = next(iter(counts.values()))
    ordered = sorted(examples, key=lambda example: example.label)
    return Draw(
        dataset.name, rule, tuple(ordered), dataset.split_sha256, expected, seed if seed is not None else list_seed
    )


def _own_list(content: Mapping[str, Any], file: Path, dataset: PhotoDataset) -> list[Example]:
    for key, value in (("dataset", dataset.name), ("split_sha256", dataset.split_sha256)):
        if content.get(key) != value:
            raise DatasetError(
                f"{file} was drawn from {key} {content.get(key)!r}, the data set has {value!r}; use a list of its own"
            )
    by_id = {example.id: example for example in dataset.train}
    records = _records(content.get("examples"), file, "id")
    return [_checked(by_id.get(record["id"]), record, record["id"], file) for record in records]


def _published_list(content: Any, file: Path, dataset: PhotoDataset) -> list[Example]:
    train = content.get("train") if isinstance(content, Mapping) else None
    data = train.get("data") if isinstance(train, Mapping) else None
    records = _records(data, file, "impath")
    by_id = {example.id: example for example in dataset.train}
    found = []
    for record in records:
        parts = record["impath"].replace("\\", "/").split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        example = next((by_id[tail] for tail in tails if tail in by_id), None)
        found.append(_checked(example, record, record["impath"], file))
    return found


def _records(records: Any, file: Path, key: str) -> Sequence[Mapping[str, Any]]:
    fits = isinstance(records, list) and all(
        isinstance(record, Mapping) and isinstance(record.get(key), str) and type(record.get("label")) is int
        for record in records
    )
    if not fits or not records:
        raise DatasetError(
            f"{file} is no few-shot list; expected one of write_draw, or CoOp's draws as JSON with "
            '{"train": {"data": [{"impath": ..., "label": ..., "classname": ...}]}}'
        )
    return list(records)


def _checked(example: Example | None, record: Mapping[str, Any], name: str, file: Path) -> Example:
    if example is None:
        raise DatasetError(f"{file}: {name!r} is not in the train part; the list is of another data set or split")
    if example.label != record["label"]:
        raise DatasetError(
            f"{file}: {name!r} has label {record['label']}, the data set says {example.label} "
            f"({example.prompt_name}); the list is of another split"
        )
    return example


def _check_shots(file: Path, dataset: PhotoDataset, counts: Counter[int], shots: int) -> None:
    """Every class has `shots`, or all that it has."""
    available = Counter(example.label for example in dataset.train)
    for label in range(dataset.num_classes):
        if counts[label] != shots and counts[label] != min(shots, available[label]):
            raise DatasetError(
                f"{file} has {counts[label]} exemplars of class {label} ({dataset.prompt_names[label]}), expected "
                f"{shots}; is it the list of another number of shots?"
            )


def _pools(dataset: PhotoDataset, shots: int) -> dict[int, list[Example]]:
    """Photos of the train part by class."""
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise DatasetError(f"shots={shots!r} must be a whole number of at least 1")
    if not dataset.train:
        raise DatasetError(f"{dataset.name} has no train part, so there are no exemplars; only text can be used")
    pools: dict[int, list[Example]] = defaultdict(list)
    for example in dataset.train:
        pools[example.label].append(example)
    short = dataset.num_classes - sum(len(pool) >= shots for pool in pools.values())
    if short:
        logger.warning(
            "%s: %d of %d classes have fewer than %d photos", dataset.name, short, dataset.num_classes, shots
        )
    return pools


def stratified_sample(examples: Iterable[Example], limit: int, seed: int = 0) -> list[Example]:
    """`limit` examples at random, as even over the classes as their sizes allow, in the order given.

    Every class gets its share, limit x (its size) / (all), rounded down; what is left goes to the classes with the
    largest remainders, equal ones by lot.

    Raises:
        DatasetError: `limit` is not at least 1.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise DatasetError(f"limit={limit!r} must be a whole number of at least 1")
    ordered = list(examples)
    if limit >= len(ordered):
        return ordered
    by_label: dict[int, list[int]] = defaultdict(list)
    for place, example in enumerate(ordered):
        by_label[example.label].append(place)
    rng = random.Random(f"{seed}/limit")
    labels = sorted(by_label)
    rng.shuffle(labels)
    share = {label: divmod(limit * len(by_label[label]), len(ordered)) for label in labels}
    rest = limit - sum(whole for whole, _ in share.values())
    raised = set(sorted(labels, key=lambda label: -share[label][1])[:rest])
    chosen: list[int] = []
    for label in sorted(labels):
        chosen += random.Random(f"{seed}/{label}").sample(by_label[label], share[label][0] + (label in raised))
    return [ordered[place] for place in sorted(chosen)]
