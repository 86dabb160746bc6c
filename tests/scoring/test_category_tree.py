"""Category trees: the official file and a child-to-parent dictionary give the same descendants; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rar_mmdet.errors import CategoryTreeError
from rar_mmdet.scoring import CategoryTree

NAMES = {"animal": 1, "bird": 2, "owl": 3, "fish": 4}
BELOW = {1: (2, 3, 4), 2: (3,)}


def save(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "tree.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


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
    assert CategoryTree.load(save(tmp_path, content), NAMES).descendants == BELOW


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"owl": "reptile"}, "'reptile' is no category id or name", id="unknown-name"),
        pytest.param([1, 2], "holds a list", id="list"),
        pytest.param("{", "is not JSON", id="broken"),
        pytest.param({"categoryid2treeid": {"1": "n1"}}, "ancestor2descendant", id="half-official"),
        pytest.param({"1": 2, "2": 1}, "is its own ancestor", id="circle"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CategoryTreeError, match=message):
        CategoryTree.load(save(tmp_path, content), NAMES)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CategoryTreeError, match="does not exist"):
        CategoryTree.load(tmp_path / "none.json", NAMES)
