"""Category names: how they are read, cleaned and compared, and which label each category has."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from pathlib import Path
from typing import Any

from rar_mmdet.errors import RarError, VocabularyError
from rar_mmdet.files.names import (
    NUM_SHOWN,
    clean_name,
    cleaned,
    counted,
    did_you_mean,
    kind_of,
    short,
    shown,
    vocabulary_hash,
)
from rar_mmdet.files.text import decode_text, parse_json, read_bytes

__all__ = ["check_same_vocabulary", "clean_name", "label_order", "read_vocabulary", "vocabulary_hash"]

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".json")
# A file changed less than this ago may change again within one tick of the disk's clock, unnoticed (git does the same).
_SETTLED_NS = 2_000_000_000


# Labels


def label_order(
    categories: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    where: str = "the annotation file",
) -> list[int]:
    """The category id that each label stands for: label i is `result[i]`.

    This is the one place where labels are decided; datasets, metrics and tools ask it.

    Args:
        categories: the `categories` of an annotation file in COCO, LVIS or V3Det style.
        classes: the names of the labels, in label order: the file's names in any order, or some of them; `None`: all
            categories in the order of the file. Names are compared as they are written, then cleaned (`clean_name`). A
            name that several categories share must be there as often as in the file; it then stands for them in the
            order of the file.
        where: what messages call the file.

    Raises:
        VocabularyError: a category without a proper id or name; or a class that is not in the file, is repeated, or
            can mean several categories. The message names it.
    """
    check_categories(categories, where)
    ids = [int(category["id"]) for category in categories]
    if classes is None:
        return ids
    wanted = _check_names(classes, "classes")
    names = [category["name"] for category in categories]
    taken: dict[int, int] = {}  # label -> row of `categories`
    _pair(names, wanted, taken)
    _pair([cleaned(name) for name in names], [cleaned(name) for name in wanted], taken, spelt=(names, wanted))
    if len(taken) < len(wanted):
        raise VocabularyError(_unpaired(names, wanted, taken, where))
    return [ids[taken[label]] for label in range(len(wanted))]


def check_categories(categories: Any, where: str) -> None:
    """Refuse a list of categories in which an id or a name is missing, repeated (ids) or of the wrong kind.

    Raises:
        VocabularyError: naming the record.
    """
    if isinstance(categories, str | bytes | Mapping) or not isinstance(categories, Sequence):
        raise VocabularyError(
            f"{where}: `categories` is {kind_of(categories)}, expected a list of records like "
            '{"id": 1, "name": "cat"}. Is it an annotation file in COCO, LVIS or V3Det style?'
        )
    if not categories:
        raise VocabularyError(f"{where}: `categories` is empty, so there are no labels. Give a file with categories")
    first_with: dict[int, int] = {}
    for row, category in enumerate(categories):
        problem = _odd_category(category)
        if problem:
            raise VocabularyError(f"{where}: categories[{row}] = {short(category)}: {problem}. Mend this record")
        twin = first_with.setdefault(int(category["id"]), row)
        if twin != row:
            raise VocabularyError(
                f"{where}: categories[{twin}] ({categories[twin]['name']!r}) and categories[{row}] "
                f"({category['name']!r}) have the same id {category['id']}. Give each category an id of its own"
            )


def _odd_category(category: Any) -> str | None:
    """What is wrong with one record, if anything."""
    if not isinstance(category, Mapping):
        return 'expected a record like {"id": 1, "name": "cat"}'
    if "id" not in category:
        return "it has no `id`"
    if not isinstance(category["id"], Integral) or isinstance(category["id"], bool):
        return f"its id is {kind_of(category['id'])}, expected a whole number"
    if "name" not in category:
        return "it has no `name`"
    if not isinstance(category["name"], str):
        return f"its name is {kind_of(category['name'])}, expected text"
    return None if cleaned(category["name"]) else "its name is empty"


def _pair(
    names: Sequence[str],
    wanted: Sequence[str],
    taken: dict[int, int],
    spelt: tuple[Sequence[str], Sequence[str]] | None = None,
) -> None:
    """Give labels the categories of their name, where the name is there as often as it is wanted.

    Args:
        names: the names of the file.
        wanted: the names of the labels.
        taken: label -> category found so far; added to.
        spelt: both lists as they are written, if the others are cleaned. Several spellings of one name have no order.
    """
    used = set(taken.values())
    rows, labels = defaultdict(list), defaultdict(list)
    for row, name in enumerate(names):
        if row not in used:
            rows[name].append(row)
    for label, name in enumerate(wanted):
        if label not in taken:
            labels[name].append(label)
    for name, own in labels.items():
        found = rows.get(name, [])
        if len(found) != len(own):
            continue
        if spelt and len(own) > 1 and len({spelt[1][label] for label in own}) > 1:
            continue
        taken.update(zip(own, found, strict=True))


def _unpaired(names: Sequence[str], wanted: Sequence[str], taken: Mapping[int, int], where: str) -> str:
    """The message for labels that found no category, or no single one."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        by_name[cleaned(name)].append(row)
    open_labels = [label for label in range(len(wanted)) if label not in taken]
    absent = [label for label in open_labels if cleaned(wanted[label]) not in by_name]
    if absent:
        texts = [f"{wanted[label]!r}{did_you_mean(wanted[label], names)}" for label in absent[:NUM_SHOWN]]
        texts += [repr(wanted[label]) for label in absent[NUM_SHOWN:]]
        return (
            f"{len(absent)} of {len(wanted)} classes are not among the {len(names)} categories of {where}: "
            f"{shown(texts)}. Write them as the file does, or leave `classes` out to take all of its categories"
        )
    name = wanted[open_labels[0]]
    rows = by_name[cleaned(name)]
    times = sum(cleaned(other) == cleaned(name) for other in wanted)
    spellings = sorted({names[row] for row in rows})
    return (
        f"the class {name!r} is there {counted(times, 'time')} in `classes`, and "
        f"{counted(len(rows), 'category', 'categories')} of {where} may be meant: {shown(list(map(repr, spellings)))} "
        f"(so for {len({wanted[i] for i in open_labels})} of {len(wanted)} classes). Labels would be a guess: "
        + (
            "name each class once"
            if times > len(rows)
            else "repeat the name as often as the file does, write each as the file does, or leave `classes` out"
        )
    )


def check_same_vocabulary(
    names: Sequence[str],
    classes: Sequence[str] | None,
    names_of: str = "the recognizer's vocabulary",
    classes_of: str = "the dataset",
    advice: str = "Point `recognizer.vocabulary` at the dataset's annotation file, or at a file with these names",
    error: type[RarError] = VocabularyError,
) -> None:
    """Labels index both lists, so both must have the same names in the same order; another spelling is fine.

    Args:
        names: C names.
        classes: C names; `None` when nothing is known of them, and nothing is checked.
        names_of: what messages call the first list.
        classes_of: what messages call the second list.
        advice: what to type.
        error: class of the error.

    Raises:
        RarError: of that class; the lists differ once their names are cleaned. The message says in how many places,
            the first of them, and `advice`.
    """
    if classes is None:
        return
    own, other = [cleaned(name) for name in names], [cleaned(name) for name in classes]
    if own == other:
        return
    different = [i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b]
    told = ""
    if different:
        first = different[0]
        told = f"; label {first} is {names[first]!r} here and {classes[first]!r} there"
    if len(own) != len(other):
        longer, at = (names, names_of) if len(own) > len(other) else (classes, classes_of)
        told = told or f"; {longer[min(len(own), len(other))]!r} is in {at} alone"
        raise error(
            f"{names_of} has {len(own)} names, {classes_of} {len(other)} classes{told}. Labels would mean different "
            f"things. {advice}"
        )
    order = "has the same names in another order" if Counter(own) == Counter(other) else "has other names"
    raise error(
        f"{names_of} {order} than {classes_of}: {len(different)} of {len(own)} labels differ{told}. Labels would mean "
        f"different things. {advice}"
    )


# Reading


def read_vocabulary(source: str | os.PathLike[str] | Iterable[str], backend_args: dict | None = None) -> list[str]:
    """Category names in label order.

    Args:
        source: a path, or the names themselves. A `.txt` file has one name on each line, so that label i is line
            i + 1; empty lines at its end do not count. Of a `.json` annotation file in COCO, LVIS or V3Det style the
            names of its `categories` are read in their order.
        backend_args: MMEngine's file backend for a path; `None`: the local disk, or what an address with "://" says.

    Returns:
        The names: of a text file in NFC without white space at both ends, else as they are written. Names that read
        alike, comments and lines with separators are kept, so that labels do not shift, and warned of once.

    Raises:
        MissingAssetError: the file does not exist.
        VocabularyError: no names, an odd name, an empty line between names, a file of another kind or encoding.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        origin = f"vocabulary {path!r}"
        names = _check_names(_read_names(path, origin, backend_args), origin)
    else:
        origin = "vocabulary (a list)"
        names = _check_names(source, origin)
    _warn_of_twins(names, origin)
    return names


def _read_names(path: str, origin: str, backend_args: dict | None) -> list[str]:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        close = difflib.get_close_matches(suffix, SUFFIXES, n=1)
        raise VocabularyError(
            f"{origin} ends in {suffix!r}; expected .txt (one name on each line) or .json (an annotation file with "
            f"`categories`){'; did you mean ' + close[0] + '?' if close else '.'} Names themselves are given as a list"
        )
    if suffix == ".txt":
        data = read_bytes(path, origin, VocabularyError, backend_args)
        return _names_of_text(decode_text(data, origin, VocabularyError), origin)
    return list(_read_categories(path, origin, backend_args))


def _names_of_text(text: str, origin: str) -> list[str]:
    """One name for each line; what may be no name is warned of, an empty line between names is refused."""
    lines = text.splitlines()
    while lines and not cleaned(lines[-1]):
        lines.pop()
    empty = [number for number, line in enumerate(lines, 1) if not cleaned(line)]
    if empty:
        raise VocabularyError(
            f"{origin}: line {empty[0]} is empty ({counted(len(empty), 'such line')}). Labels count the lines, so it "
            "would be a category without a name, or shift all labels after it. Remove the empty lines"
        )
    comments = [number for number, line in enumerate(lines, 1) if line.lstrip().startswith(("#", "//"))]
    if comments:
        _warn_once(
            f"{origin}: {counted(len(comments), 'line')} looking like a comment, taken as a name; the first is line "
            f"{comments[0]}: {lines[comments[0] - 1]!r}. Remove them if they are no categories"
        )
    joined = [number for number, line in enumerate(lines, 1) if re.search(r"[,;\t|]", line.strip())]
    if joined:
        _warn_once(
            f"{origin}: {counted(len(joined), 'line')} with a comma or another separator; the first is line "
            f"{joined[0]}: {lines[joined[0] - 1]!r}. Each line is one name; write several names on several lines"
        )
    return [unicodedata.normalize("NFC", line.strip()) for line in lines]


_known_categories: dict[tuple[Any, ...], tuple[str, ...]] = {}


def _read_categories(path: str, origin: str, backend_args: dict | None) -> tuple[str, ...]:
    """Names in an annotation file. Model and dataset both ask; an unchanged file is parsed once in a process."""
    key = _state_of(path) if backend_args is None and "://" not in path else None
    if key in _known_categories:
        return _known_categories[key]
    content = parse_json(read_bytes(path, origin, VocabularyError, backend_args), origin, VocabularyError)
    if not isinstance(content, Mapping) or "categories" not in content:
        what = f"keys {shown([repr(k) for k in content])}" if isinstance(content, Mapping) else kind_of(content)
        raise VocabularyError(
            f"{origin} has no list `categories`, it holds {what or 'nothing'}. Give an annotation file in COCO, LVIS "
            "or V3Det style, or a .txt file with one name on each line"
        )
    check_categories(content["categories"], origin)
    names = tuple(category["name"] for category in content["categories"])
    if key is not None:
        _known_categories[key] = names
    return names


def _state_of(path: str) -> tuple[Any, ...] | None:
    """What changes when a file is edited; `None` where that cannot be told, as just after it was written."""
    try:
        stat = Path(path).expanduser().stat()
    except OSError:
        return None
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < _SETTLED_NS:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _check_names(names: Any, origin: str) -> list[str]:
    """The names as a list, if each is a text with something to read in it."""
    if isinstance(names, str | bytes):
        raise VocabularyError(f"{origin} is the text {names!r}, expected a list of names; write [{names!r}]")
    if isinstance(names, Mapping | Set) or not isinstance(names, Iterable):
        raise VocabularyError(
            f"{origin} is {kind_of(names)}, expected names in an order: a list, or the path of a file"
        )
    names = list(names)
    if not names:
        raise VocabularyError(f"{origin} holds no names. Give at least one")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise VocabularyError(f"{origin}: entry {index} is {kind_of(name)}, expected a name as text")
        if not cleaned(name):
            raise VocabularyError(f"{origin}: entry {index} is {name!r}, expected a name with at least one letter")
    return names


def _warn_of_twins(names: Sequence[str], origin: str) -> None:
    labels: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(names):
        labels[cleaned(name).casefold()].append(label)
    twins = [f"{names[own[0]]!r} (labels {', '.join(map(str, own))})" for own in labels.values() if len(own) > 1]
    if twins:
        _warn_once(
            f"{origin}: {counted(len(twins), 'name')} given more than once, but for case and underscores: "
            f"{shown(twins)}. They share their probability, so each of them scores lower than it would alone"
        )


@functools.lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    logger.warning(message)
