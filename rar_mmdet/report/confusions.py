"""Which names are taken for which: pairs, classes, and both rolled up along a category tree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.errors import CategoryTreeError
from rar_mmdet.files.vocabulary import check_categories, read_vocabulary
from rar_mmdet.report.runs import Run
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.json_files import load_json

__all__ = ["ClassRow", "Meeting", "NameTree", "RollUp", "classes_of", "confusions", "read_name_tree", "roll_up"]

# How a given name stands to the annotated one, nearest first.
RELATIONS = ("more general", "more special", "under one parent", "further apart", "nothing in common")


@dataclass(frozen=True)
class ClassRow:
    """One annotated category."""

    name: str
    objects: int
    before: float  # share whose first name is right by retrieval
    after: float  # after ranking
    taken_for: str  # the wrong name it gets most often; "" if it gets none
    times: int  # how often that is


@dataclass(frozen=True)
class NameTree:
    """What stands above each label."""

    above: Mapping[int, tuple[int, ...]]  # label -> its ancestors, the nearest first; absent: none
    names: Mapping[int, str]  # of nodes that are no labels; they are negative


@dataclass(frozen=True)
class Meeting:
    """Mistakes between labels whose nearest common ancestor is one node."""

    name: str
    mistakes: int
    objects: int  # annotated with it or anything below it
    pair: tuple[str, str]  # the most frequent: annotated, given
    times: int  # how often that is


@dataclass(frozen=True)
class RollUp:
    """The mistakes of a run along a tree."""

    relations: dict[str, int]  # of RELATIONS -> mistakes
    meetings: tuple[Meeting, ...]  # most mistakes first


def confusions(run: Run, most: int | None = 200) -> list[dict[str, Any]]:
    """The pairs (annotated name, given name) that occur most often: labels, names, count and an example's row."""
    rows = np.flatnonzero(run.has_truth & ~run.fused.correct)
    pairs = list(zip(run.truth[rows].tolist(), run.named[rows].tolist(), strict=True))
    first: dict[tuple[int, int], int] = {}
    for pair, row in zip(pairs, rows.tolist(), strict=True):
        first.setdefault(pair, row)
    ranked = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))[:most]
    return [
        {
            "truth": truth,
            "named": named,
            "truth_name": run.name_of(truth),
            "named_name": run.name_of(named),
            "count": count,
            "row": first[truth, named],
        }
        for (truth, named), count in ranked
    ]


def classes_of(run: Run) -> list[ClassRow]:
    """Every annotated category, those with most wrong first names first."""
    known = run.has_truth
    labels, place = np.unique(run.truth[known], return_inverse=True)
    objects, before, after = (
        np.bincount(place, weights=weights, minlength=len(labels))
        for weights in (None, run.retrieval.correct[known], run.fused.correct[known])
    )
    worst: dict[int, tuple[str, int]] = {}
    for pair in confusions(run, most=None):
        worst.setdefault(pair["truth"], (pair["named_name"], pair["count"]))
    rows = [
        ClassRow(run.name_of(label), int(n), b / n, a / n, *worst.get(label, ("", 0)))
        for label, n, b, a in zip(labels.tolist(), objects.tolist(), before.tolist(), after.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: (-round(row.objects * (1 - row.after)), row.name))


def read_name_tree(path: str | Path, vocabulary: str | Path | Sequence[str]) -> NameTree:
    """Read a category tree and put the labels of a run into it.

    Args:
        path: V3Det's official file, or a JSON dictionary {child: parent} of names or category ids; names that are no
            category are nodes of their own.
        vocabulary: the names in label order, or the file they are in. Category ids are those of an annotation file.

    Raises:
        CategoryTreeError: the tree is missing, in no known format, or about other categories.
        VocabularyError: the vocabulary cannot be read.
    """
    names = read_vocabulary(vocabulary)
    ids = list(range(len(names)))
    if isinstance(vocabulary, str | Path) and str(vocabulary).endswith(".json"):
        categories = load_json(vocabulary, "vocabulary", CategoryTreeError)["categories"]
        check_categories(categories, str(vocabulary))
        ids = [int(category["id"]) for category in categories]
    content = load_json(path, "category tree", CategoryTreeError)
    others: dict[Any, str] = {}  # nodes that are no category
    if isinstance(content, dict) and "categoryid2treeid" not in content:
        parents = {parent for parent in content.values() if isinstance(parent, str)}
        others = dict(enumerate(sorted(parents - set(names) - set(map(str, ids))), max(ids, default=0) + 1))
    tree = CategoryTree.load(path, [*names, *others.values()], [*ids, *others])
    label_of = {category: label for label, category in enumerate(ids)}
    size: dict[int, int] = {}
    above: dict[int, list[int]] = defaultdict(list)
    node_names: dict[int, str] = {}
    for ancestor, below in tree.descendants.items():
        labels = [label_of[category] for category in below if category in label_of]
        node = label_of.get(ancestor, -2 - len(node_names))
        if node < 0:
            node_names[node] = others.get(ancestor, str(ancestor))
        size[node] = len(labels)
        for label in labels:
            above[label].append(node)
    # An ancestor has more below it than what stands between.
    nearest = {label: tuple(sorted(nodes, key=lambda node: (size[node], node))) for label, nodes in above.items()}
    return NameTree(nearest, node_names)


def roll_up(run: Run, tree: NameTree, most: int = 50) -> RollUp:
    """Where in a tree the wrong names meet the annotated ones.

    Args:
        run: the regions.
        tree: of its labels.
        most: nodes that are listed.
    """
    relations = dict.fromkeys(RELATIONS, 0)
    mistakes: Counter[int] = Counter()
    worst: dict[int, tuple[tuple[str, str], int]] = {}
    for pair in confusions(run, most=None):
        relation, node = _relation(tree, pair["truth"], pair["named"])
        relations[relation] += pair["count"]
        if node is not None:
            mistakes[node] += pair["count"]
            worst.setdefault(node, ((pair["truth_name"], pair["named_name"]), pair["count"]))
    objects: Counter[int] = Counter()
    for label, count in Counter(run.truth[run.has_truth].tolist()).items():
        for node in (label, *tree.above.get(label, ())):
            objects[node] += count
    found = [
        Meeting(tree.names.get(node) or run.name_of(node), count, objects[node], *worst[node])
        for node, count in mistakes.items()
    ]
    found.sort(key=lambda meeting: (-meeting.mistakes, meeting.name))
    return RollUp(relations, tuple(found[:most]))


def _relation(tree: NameTree, truth: int, named: int) -> tuple[str, int | None]:
    """The relation, and the nearest node that is, or stands above, both."""
    over_truth, over_named = tree.above.get(truth, ()), tree.above.get(named, ())
    if named in over_truth:
        return "more general", named
    if truth in over_named:
        return "more special", truth
    common = [node for node in over_truth if node in over_named]
    if not common:
        return "nothing in common", None
    siblings = over_truth[0] == over_named[0]
    return "under one parent" if siblings else "further apart", common[0]
