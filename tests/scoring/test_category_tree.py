"""Category trees: the official file and a child-to-parent dictionary give the same descendants; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rar_mmdet.errors import CategoryTreeError
from rar_mmdet.scoring import CategoryTree

CATEGORIES = (("animal", "bird", "owl", "fish"), (1, 2, 3, 4))
BELOW = {1: (2, 3, 4), 2: (3,)}


def save(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "tree.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def official(nodes: object = None, below: object = None) -> dict[str, object]:
    return {
        "categoryid2treeid": {"1": "n1", "2": "n2"} if nodes is None else nodes,
        "ancestor2descendant": {"n1": ["n2"]} if below is None else below,
    }


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"2": 1, "3": 2, "4": 1}, id="ids"),
        pytest.param({"2": "1", "3": "2", "4": "1", "1": None}, id="ids-as-text"),
        pytest.param({"bird": "animal", "owl": "bird", "fish": "animal"}, id="names"),
        pytest.param(
            {
                "categoryid2treeid": {"1": "n1", "2": "n2", "3": "n3", "4": "n4"},
                "ancestor2descendant": {"n0": ["n1", "n2"], "n1": ["n2", "n9", "n3", "n4"], "n2": ["n3"]},
            },
            id="official",
        ),
    ],
)
def test_formats_agree(tmp_path: Path, content: dict) -> None:
    assert CategoryTree.load(save(tmp_path, content), *CATEGORIES).descendants == BELOW


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"owl": "reptile"}, "'reptile' is no category id or name", id="unknown-name"),
        pytest.param([1, 2], "holds .1, 2., a list", id="list"),
        pytest.param("{", "is not complete JSON", id="broken"),
        pytest.param("{}", "holds {}, a dict", id="empty"),
        pytest.param({"categoryid2treeid": {"1": "n1"}}, "ancestor2descendant is None", id="half-official"),
        pytest.param(official(below={"n1": "n2"}), "'n1' has 'n2', expected a list", id="text-for-a-list"),
        pytest.param(official(nodes=["n1"]), "categoryid2treeid is .'n1'., expected a dictionary", id="list-of-nodes"),
        pytest.param({"2": True}, "True is no category id", id="bool"),
        pytest.param({"2": [1]}, "is no category id", id="list-for-a-parent"),
        pytest.param({"20": 10}, "of another dataset", id="other-ids"),
        pytest.param(official(nodes={"71": "n1", "72": "n2"}), "of another dataset", id="official-other-ids"),
        pytest.param({"1": 2, "2": 1}, "is its own ancestor", id="circle"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CategoryTreeError, match=message):
        CategoryTree.load(save(tmp_path, content), *CATEGORIES)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CategoryTreeError, match="does not exist"):
        CategoryTree.load(tmp_path / "none.json", *CATEGORIES)


def test_a_name_of_two_categories_is_refused(tmp_path: Path) -> None:
    tree = save(tmp_path, {"owl": "bird"})
    with pytest.raises(CategoryTreeError, match="'bird' is the name of categories 2, 7; write ids"):
        CategoryTree.load(tree, ["bird", "owl", "bird"], [2, 3, 7])


def test_ids_that_are_text(tmp_path: Path) -> None:
    for content in ({"b": "a"}, {"categoryid2treeid": {"a": "n1", "b": "n2"}, "ancestor2descendant": {"n1": ["n2"]}}):
        tree = save(tmp_path, content)
        assert CategoryTree.load(tree, ["bird", "owl"], ["a", "b"]).descendants == {"a": ("b",)}


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"2": 1, "3": 2, "4": 1}).encode())
    assert CategoryTree.load(path, *CATEGORIES).descendants == BELOW
