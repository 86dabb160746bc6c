import json

import pytest

from rar_mmdet.errors import MissingAssetError, VocabularyError
from rar_mmdet.files.vocabulary import read_vocabulary


def test_names_file_keeps_order_and_skips_blank_lines(tmp_path):
    (tmp_path / "names.txt").write_text("crème brûlée\n\n  fire hydrant \n", encoding="utf-8")
    assert read_vocabulary(tmp_path / "names.txt") == ["crème brûlée", "fire hydrant"]


def test_annotation_file_gives_its_categories_in_file_order(tmp_path):
    path = tmp_path / "ann.json"
    path.write_text(json.dumps({"categories": [{"id": 9, "name": "b"}, {"id": 2, "name": "a"}]}))
    assert read_vocabulary(str(path)) == ["b", "a"]


def test_a_list_may_repeat_names():
    assert read_vocabulary(["bow", "bow"]) == ["bow", "bow"]


@pytest.mark.parametrize(
    ("name", "content", "error", "match"),
    [
        pytest.param("absent.txt", None, MissingAssetError, "does not exist", id="missing-file"),
        pytest.param("names.csv", "a", VocabularyError, r"\.csv.*expected \.txt", id="unknown-suffix"),
        pytest.param("empty.txt", "\n", VocabularyError, "holds no names", id="empty-file"),
        pytest.param("ann.json", "{}", VocabularyError, "no list `categories`", id="json-without-categories"),
    ],
)
def test_bad_files(tmp_path, name, content, error, match):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=match):
        read_vocabulary(tmp_path / name)


def test_an_empty_name_is_named_by_its_place():
    with pytest.raises(VocabularyError, match="entry 1 is ' '"):
        read_vocabulary(["cat", " "])
