"""V3Det's second protocol: naming a descendant of the annotated category is no mistake.

The official script (V3Det/V3Det, evaluation/cocoeval_mp.py, `ignore_parent_child_gts=True`) adds every annotation, as
an ignored one, to each descendant category that is predicted in its image. So one such prediction per annotation and
threshold is ignored; further ones are false positives as usual.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.errors import CategoryTreeError
from rar_mmdet.scoring.annotations import GroundTruth, IntArray, rows_of

__all__ = ["CategoryTree", "add_ignored_ancestors"]

EXPANSION_CHUNK = 1 << 21  # (annotation, descendant) combinations looked up at once

FORMATS = (
    "expected V3Det's v3det_2023_v1_category_tree.json (keys categoryid2treeid and ancestor2descendant), or a "
    "dictionary from each child to its parent, both category ids or both category names"
)


@dataclass(frozen=True)
class CategoryTree:
    """Descendants of each category."""

    descendants: Mapping[int, tuple[int, ...]]  # category id -> category ids anywhere below it

    @staticmethod
    def load(path: str | Path, category_ids: Mapping[str, int]) -> CategoryTree:
        """Read a tree file.

        Args:
            path: The official file, or a JSON dictionary {child: parent}.
            category_ids: Id of each category name, for trees that are written with names.

        Raises:
            CategoryTreeError: The file is missing or in no known format.
        """
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CategoryTreeError(f"category tree {path} does not exist") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CategoryTreeError(f"category tree {path} is not JSON ({error}); {FORMATS}") from None
        if not isinstance(tree, dict) or not tree:
            raise CategoryTreeError(f"category tree {path} holds a {type(tree).__name__}; {FORMATS}")
        if "categoryid2treeid" in tree or "ancestor2descendant" in tree:
            return _from_official(tree, path)
        return CategoryTree.from_parents(_parents_by_id(tree, category_ids, path))

    @staticmethod
    def from_parents(parents: Mapping[int, int]) -> CategoryTree:
        """Tree from the parent of each category that has one.

        Raises:
            CategoryTreeError: The parents run in a circle.
        """
        below: dict[int, list[int]] = {}
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
    lists = [
        rows_of(np.array(tree.descendants.get(int(c), ()), np.int64), truth.category_ids) for c in truth.category_ids
    ]
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


def _from_official(tree: Mapping[str, Any], path: str | Path) -> CategoryTree:
    try:
        tree_id_of = tree["categoryid2treeid"]
        category_of = {tree_id: int(category) for category, tree_id in tree_id_of.items()}
        below = tree["ancestor2descendant"]
        descendants = {
            category_of[ancestor]: tuple(dict.fromkeys(category_of[d] for d in nodes if d in category_of))
            for ancestor, nodes in below.items()
            if ancestor in category_of
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CategoryTreeError(f"category tree {path}: {type(error).__name__} {error}; {FORMATS}") from None
    return CategoryTree(descendants)


def _parents_by_id(tree: Mapping[str, Any], category_ids: Mapping[str, int], path: str | Path) -> dict[int, int]:
    def as_id(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value in category_ids:
            return category_ids[value]
        if isinstance(value, str) and value.lstrip("-").isdigit():
            return int(value)
        raise CategoryTreeError(f"category tree {path}: {value!r} is no category id or name; {FORMATS}")

    return {as_id(child): as_id(parent) for child, parent in tree.items() if parent is not None}
