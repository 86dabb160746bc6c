"""V3Det's second protocol: naming a descendant of the annotated category is no mistake.

The official script (V3Det/V3Det, evaluation/cocoeval_mp.py, `ignore_parent_child_gts=True`) adds every annotation, as
an ignored one, to each descendant category that is predicted in its image. So one such prediction per annotation and
threshold is ignored; further ones are false positives as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.errors import CategoryTreeError
from rar_mmdet.scoring.annotations import GroundTruth, IntArray
from rar_mmdet.scoring.columns import short
from rar_mmdet.scoring.identifiers import as_column, rows_of, some_of
from rar_mmdet.scoring.json_files import load_json

__all__ = ["CategoryTree", "add_ignored_ancestors"]

EXPANSION_CHUNK = 1 << 21  # (annotation, descendant) combinations looked up at once

FORMATS = (
    "expected V3Det's v3det_2023_v1_category_tree.json (keys categoryid2treeid and ancestor2descendant), or a "
    "dictionary from each child to its parent, both category ids or both category names"
)


@dataclass(frozen=True)
class CategoryTree:
    """Descendants of each category."""

    descendants: Mapping[Any, tuple[Any, ...]]  # category id -> category ids anywhere below it

    @staticmethod
    def load(path: str | Path, category_names: Sequence[str], category_ids: Sequence[Any]) -> CategoryTree:
        """Read a tree file.

        Args:
            path: The official file, or a JSON dictionary {child: parent}.
            category_names: K names of the annotations' categories, for trees that are written with names.
            category_ids: K ids of these categories.

        Raises:
            CategoryTreeError: The file is missing, in no known format, or about other categories.
        """
        tree = load_json(path, "category tree", CategoryTreeError, hint=FORMATS.capitalize())
        if not isinstance(tree, dict) or not tree:
            raise CategoryTreeError(f"category tree {path} holds {short(tree)}, a {type(tree).__name__}; {FORMATS}")
        if "categoryid2treeid" in tree or "ancestor2descendant" in tree:
            return _from_official(tree, category_ids, path)
        find = _finder(category_names, category_ids, path)
        parents = {find(child): find(parent) for child, parent in tree.items() if parent is not None}
        _check_dataset({*parents, *parents.values()}, category_ids, path)
        return CategoryTree.from_parents(parents)

    @staticmethod
    def from_parents(parents: Mapping[Any, Any]) -> CategoryTree:
        """Tree from the parent of each category that has one.

        Raises:
            CategoryTreeError: The parents run in a circle.
        """
        below: dict[Any, list[Any]] = {}
        for child in parents:
            node, seen = child, {child}
            while node in parents:
                node = parents[node]
                if node in seen:
                    raise CategoryTreeError(f"category tree: category {node} is its own ancestor")
                seen.add(node)
                below.setdefault(node, []).append(child)
        return CategoryTree({ancestor: tuple(sorted(children)) for ancestor, children in below.items()})


def add_ignored_ancestors(truth: GroundTruth, tree: CategoryTree, predicted: IntArray) -> GroundTruth:
    """Add each annotation, ignored, to the descendant categories predicted in its image.

    Args:
        truth: The annotations.
        tree: Who descends from whom.
        predicted: Pair keys of all detections.
    """
    predicted = np.unique(predicted)
    lists = [rows_of(as_column(tree.descendants.get(c, ())), truth.category_ids) for c in truth.category_ids.tolist()]
    lists = [rows[rows >= 0] for rows in lists]
    counts = np.array([len(rows) for rows in lists], np.int64)
    starts = np.cumsum(counts) - counts
    flat = np.concatenate(lists) if lists else np.zeros(0, np.int64)
    parts: list[tuple[IntArray, IntArray]] = []
    source = np.flatnonzero(counts[truth.category] > 0)
    step = max(1, EXPANSION_CHUNK // max(int(counts.max(initial=1)), 1))
    for low in range(0, len(source), step):
        rows = source[low : low + step]
        count = counts[truth.category[rows]]
        row = np.repeat(rows, count)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        category = flat[np.repeat(starts[truth.category[rows]], count) + offset]
        keys = truth.pair_keys(truth.image[row], category)
        place = np.minimum(np.searchsorted(predicted, keys), max(len(predicted) - 1, 0))
        hit = predicted[place] == keys if len(predicted) else np.zeros(len(keys), bool)
        parts.append((row[hit], category[hit]))
    if not parts:
        return truth
    row, category = (np.concatenate(column) for column in zip(*parts, strict=True))
    return truth.with_rows(truth.image[row], category, row)


def _from_official(tree: Mapping[str, Any], category_ids: Sequence[Any], path: str | Path) -> CategoryTree:
    node_of, below = (_dictionary(tree, key, path) for key in ("categoryid2treeid", "ancestor2descendant"))
    for ancestor, nodes in below.items():
        if not isinstance(nodes, list):
            raise CategoryTreeError(
                f"category tree {path}: {ancestor!r} has {short(nodes)}, expected a list; {FORMATS}"
            )
    _check_dataset(node_of, map(str, category_ids), path)
    by_text = {str(i): i for i in category_ids}
    category_of = {str(node): by_text[category] for category, node in node_of.items() if category in by_text}
    descendants = {
        category_of[ancestor]: tuple(dict.fromkeys(category_of[str(n)] for n in nodes if str(n) in category_of))
        for ancestor, nodes in below.items()
        if ancestor in category_of
    }
    return CategoryTree(descendants)


def _dictionary(tree: Mapping[str, Any], key: str, path: str | Path) -> dict[str, Any]:
    part = tree.get(key)
    if not isinstance(part, dict):
        raise CategoryTreeError(f"category tree {path}: {key} is {short(part)}, expected a dictionary; {FORMATS}")
    return part


def _check_dataset(mentioned: Iterable[Any], category_ids: Iterable[Any], path: str | Path) -> None:
    mentioned, category_ids = list(mentioned), list(category_ids)
    if not set(mentioned) & set(category_ids):
        raise CategoryTreeError(
            f"category tree {path}: none of its categories (such as {some_of(mentioned)}) is one of the annotations' "
            f"(such as {some_of(category_ids)}); it is of another dataset"
        )


def _finder(names: Sequence[str], category_ids: Sequence[Any], path: str | Path) -> Callable[[Any], Any]:
    """Category id that a name, a number or its text stands for."""
    by_name: dict[str, list[Any]] = {}
    for name, category_id in zip(names, category_ids, strict=True):
        by_name.setdefault(name, []).append(category_id)
    by_text = {str(i): i for i in category_ids}

    def find(value: Any) -> Any:
        if isinstance(value, str) and value in by_name:
            if len(by_name[value]) > 1:
                raise CategoryTreeError(
                    f"category tree {path}: {value!r} is the name of categories {some_of(by_name[value])}; write ids"
                )
            return by_name[value][0]
        if isinstance(value, (int, str)) and not isinstance(value, bool) and str(value) in by_text:
            return by_text[str(value)]
        if isinstance(value, int) and not isinstance(value, bool):
            return value  # a node above or beside the annotated categories
        if isinstance(value, str) and value.lstrip("-").isdigit():
            return int(value)
        raise CategoryTreeError(f"category tree {path}: {short(value)} is no category id or name; {FORMATS}")

    return find
