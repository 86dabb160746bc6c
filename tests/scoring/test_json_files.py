"""Files are read whatever Unicode encoding they have, under gzip too; what is no JSON text is refused by name."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rar_mmdet.errors import AnnotationFileError, ResultFileError
from rar_mmdet.scoring import load_annotation_file, read_results

DATASET = {"images": [{"id": 1, "file_name": "é.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "café"}]}
RECORDS = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, "name": "café"}] * 3
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_every_encoding_holds_the_same(tmp_path: Path, encoding: str, compressed: bool) -> None:
    pack = gzip.compress if compressed else bytes
    path = tmp_path / "f.json"
    path.write_bytes(pack(json.dumps(DATASET, ensure_ascii=False).encode(encoding)))
    assert load_annotation_file(path) == DATASET
    path.write_bytes(pack(json.dumps(RECORDS, ensure_ascii=False).encode(encoding)))
    np.testing.assert_array_equal(read_results(path).boxes_xywh, [[1, 2, 3, 4]] * 3)


def zip_of(text: str, path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("f.json", text)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(pickle.dumps(RECORDS), "is a Python pickle .such as the results.pkl", id="pickle"),
        pytest.param(b"PAR1" + b"\0" * 40, "is a parquet file", id="parquet"),
        pytest.param(b"\xfd7zXZ\0", "compressed by xz; unpack it first", id="xz"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer.*git lfs pull", id="git-lfs"),
        pytest.param(b"<!DOCTYPE html><html>404</html>", "an HTML or XML page; was a download refused", id="html"),
        pytest.param(gzip.compress(json.dumps(RECORDS * 99).encode())[:-30], "is a damaged gzip file", id="cut-gzip"),
        pytest.param(gzip.compress(b"[]")[:5], "is a damaged gzip file", id="head-of-gzip"),
        pytest.param('["café"]'.encode("latin-1"), "is not UTF-8 text .* at byte 5", id="latin-1"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b" \n", "is empty", id="blank"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(ResultFileError, match=f"result file .*f.json .*{message}"):
        read_results(path)
    with pytest.raises(AnnotationFileError, match=f"annotation file .*f.json .*{message}"):
        load_annotation_file(path)


def test_a_zip_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    zip_of("[]", path)
    with pytest.raises(ResultFileError, match=r"is a zip archive .* unpack it first"):
        read_results(path)


def test_a_folder_and_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationFileError, match="cannot be opened: Is a directory"):
        load_annotation_file(tmp_path)
    with pytest.raises(AnnotationFileError, match=r"none.json does not exist .working directory: "):
        load_annotation_file(tmp_path / "none.json")


TEXT = json.dumps(DATASET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(TEXT[:-9], "is not complete JSON: it ends in the middle", id="cut"),
        pytest.param(TEXT[:-1] + ",}", "is not JSON: there is a comma too many", id="trailing-comma"),
        pytest.param(TEXT + "\n" + TEXT, "more than one JSON value .*JSON lines", id="json-lines"),
        pytest.param(TEXT.replace('"', "'"), "is not JSON: Expecting property name", id="python-text"),
        pytest.param("[" * 99999, "is not usable JSON: maximum recursion depth", id="too-deep"),
        pytest.param('{"a": ' + "9" * 5000 + "}", "is not usable JSON: Exceeds the limit", id="too-many-digits"),
        pytest.param(
            json.dumps(RECORDS), "holds a list, .*were the result file and the annotation file swapped", id="list"
        ),
    ],
)
def test_broken_annotation_files_say_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(AnnotationFileError, match=message):
        load_annotation_file(path)
