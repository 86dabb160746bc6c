"""Result files: reading in pieces equals reading at once, and every broken record is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rar_mmdet.errors import ResultFileError
from rar_mmdet.scoring import read_results, result_files, write_results
from rar_mmdet.scoring.protocols import read_checked_results
from rar_mmdet.scoring.settings import COCO, LVIS


def record(i: int, **extra: Any) -> dict[str, Any]:
    box = [i / 3, 2.0, 3.5, 4]
    return {"image_id": i % 7, "category_id": i % 5, "bbox": box, "score": 1 / (i + 1), **extra}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [7, 64, 1 << 19])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_reading_in_pieces_equals_json_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None, nested: bool
) -> None:
    monkeypatch.setattr(result_files, "CHUNK_CHARS", chunk)
    mask = {"size": [9, 9], "counts": [40, 1, 40]}
    extra = {"segmentation": mask, "tags": [{"a": 1}, {"b": "ab}, {c]"}]} if nested else {}
    records = [record(i, **extra) for i in range(50)]
    path = write(tmp_path / "r.json", json.dumps(records, indent=indent))
    read = read_results(path, keep_segmentations=nested)
    np.testing.assert_array_equal(read.boxes_xywh, [r["bbox"] for r in records])
    np.testing.assert_array_equal(read.scores, [r["score"] for r in records])
    assert read.image_ids.tolist() == [r["image_id"] for r in records]
    assert read.category_ids.tolist() == [r["category_id"] for r in records]
    if nested:
        assert read.segmentations == [r["segmentation"] for r in records]


@pytest.mark.parametrize("text", ["[]", " [ ]\n", "[\n\n]"])
def test_empty_list_is_no_detection(tmp_path: Path, text: str) -> None:
    assert len(read_results(write(tmp_path / "r.json", text))) == 0


def test_written_text_equals_json_dump(tmp_path: Path) -> None:
    per_image = [[record(0), record(1)], [], [record(2)]]
    write_results(tmp_path / "r.json", per_image)
    assert (tmp_path / "r.json").read_text() == json.dumps([record(0), record(1), record(2)])
    write_results(tmp_path / "e.json", [])
    assert (tmp_path / "e.json").read_text() == "[]"


RECORDS = [record(i) for i in range(9)]


@pytest.mark.parametrize("chunk", [40, 1 << 19])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(json.dumps(RECORDS)[:-25], "record 8 is not complete JSON", id="cut-in-a-record"),
        pytest.param(json.dumps(RECORDS)[:-1], "record 9 is not complete JSON", id="cut-before-the-bracket"),
        pytest.param("", "is empty", id="empty-file"),
        pytest.param('{"images": []}', "give the result file first", id="annotation-file"),
        pytest.param("hello", "not a JSON list", id="text"),
        pytest.param(json.dumps(RECORDS) + "x", "text after the end of the list: 'x'", id="trailing"),
        pytest.param(
            json.dumps([*RECORDS, record(9, score=float("nan"))]), "record 9 .* has score nan", id="nan-score"
        ),
        pytest.param(
            json.dumps([*RECORDS, record(9, score=float("inf"))]), "record 9 .* has score inf", id="inf-score"
        ),
        pytest.param(json.dumps([*RECORDS, record(9, score="high")]), "record 9 .* has score 'high'", id="text-score"),
        pytest.param(json.dumps([record(0, bbox=[1, 2, float("nan"), 3])]), "record 0 .* has bbox", id="nan-box"),
        pytest.param(json.dumps([record(0, bbox=[1, 2, 3])]), "record 0 .* four finite numbers", id="three-numbers"),
        pytest.param(json.dumps([*RECORDS, {"image_id": 1, "category_id": 2, "score": 1}]), "record 9", id="no-box"),
        pytest.param(
            json.dumps([*RECORDS, {"bbox": [1, 2, 3, 4], "score": 1}]), "record 9 has no image_id", id="no-image"
        ),
        pytest.param(json.dumps([*RECORDS, 5]), "record 9 is 5, expected a dictionary", id="no-record"),
        pytest.param(json.dumps([RECORDS]), "record 0 is .*, expected a dictionary with image_id", id="list-of-lists"),
        pytest.param("\n".join(map(json.dumps, RECORDS)), "one record after the other .JSON lines", id="json-lines"),
        pytest.param(json.dumps({"results": RECORDS}), "is one JSON object; .* write that list alone", id="wrapped"),
        pytest.param("[" * 99999, "record 0 is not complete JSON .maximum recursion", id="too-deep"),
        pytest.param(json.dumps([record(0, score=None)]), "has score None, expected a finite number", id="null-score"),
        pytest.param(json.dumps([record(0, score=True)]), "has score True, expected a finite number", id="bool-score"),
        pytest.param(
            json.dumps([record(0, score="0.5")]), "has score '0.5', expected a finite number", id="score-text"
        ),
        pytest.param(json.dumps([record(0, bbox=["1", "2", "3", "4"])]), "four finite numbers", id="text-box"),
        pytest.param(json.dumps([record(0, bbox=[1, 2, 3, 4, 5])]), "four finite numbers", id="five-numbers"),
        pytest.param(json.dumps([record(0, bbox=None)]), "has bbox None, expected four finite numbers", id="null-box"),
        pytest.param(json.dumps([record(0, image_id=None)]), "has image_id None, expected a whole", id="null-image"),
        pytest.param(json.dumps([record(0, image_id=[1])]), "has image_id .1., expected a whole", id="list-image"),
        pytest.param(json.dumps([record(0, category_id=True)]), "has category_id True, expected", id="bool-category"),
        pytest.param(json.dumps([record(0, category_id=1.5)]), "has category_id 1.5, expected", id="part-category"),
    ],
)
def test_broken_files_name_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str, message: str
) -> None:
    monkeypatch.setattr(result_files, "CHUNK_CHARS", chunk)
    with pytest.raises(ResultFileError, match=message):
        read_results(write(tmp_path / "r.json", text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultFileError, match="none.json does not exist"):
        read_results(tmp_path / "none.json")


def test_negative_sizes_are_refused_where_the_reference_would_count_them(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", json.dumps([record(0), record(1, bbox=[5, 5, -1, 3])]))
    with pytest.raises(ResultFileError, match="record 1 .* negative size"):
        read_checked_results(path, COCO)
    assert len(read_checked_results(path, LVIS)) == 2  # lvis-api leaves it out by itself, and the score says so
    path = write(tmp_path / "r.json", json.dumps([record(0, bbox=[5, 5, -1, -3])]))
    with pytest.raises(ResultFileError, match="record 0 .* negative size"):
        read_checked_results(path, LVIS)


@pytest.mark.parametrize("text", ["[{}, {},]", "[{},\r\n{}\r\n]", " \t[{} , {}]  \n"])
def test_commas_and_white_space_do_no_harm(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "r.json", text.format(*(json.dumps(r) for r in RECORDS[:2])))
    assert len(read_results(path)) == 2


def test_whole_numbers_written_as_floats_are_the_same_ids(tmp_path: Path) -> None:
    records = [record(0, image_id=7.0, category_id=3.0), record(1, image_id=2**70, category_id="a")]
    read = read_results(write(tmp_path / "r.json", json.dumps(records)))
    assert read.image_ids.tolist() == [7, 2**70]
    assert read.category_ids.tolist() == [3, "a"]


def test_masks_are_checked_where_they_are_kept(tmp_path: Path) -> None:
    records = [record(0), record(1, segmentation={"size": [2, 2], "counts": [1, 1]})]
    path = write(tmp_path / "r.json", json.dumps(records))
    assert len(read_results(path)) == 2
    with pytest.raises(ResultFileError, match="record 1 .* has segmentation .*add up to 2 pixels"):
        read_results(path, keep_segmentations=True)
    records = [record(0), {"image_id": 1, "category_id": 1, "score": 1}]
    path = write(tmp_path / "r.json", json.dumps(records))
    with pytest.raises(ResultFileError, match="record 1 .* has no bbox, expected four finite numbers .*, or a mask"):
        read_results(path, keep_segmentations=True)
    records[1]["segmentation"] = {"size": [2, 2], "counts": [1, 3]}
    path = write(tmp_path / "r.json", json.dumps(records))
    with pytest.raises(ResultFileError, match="record 0 has no compressed RLE, and some record has no box"):
        read_results(path, keep_segmentations=True)


def test_masks_without_boxes_bring_their_area(tmp_path: Path) -> None:
    mask = {"size": [4, 5], "counts": "02B0"}
    from pycocotools import mask as mask_api

    mask = mask_api.encode(np.asfortranarray(np.eye(4, 5, dtype=np.uint8)))
    mask["counts"] = mask["counts"].decode()
    path = write(tmp_path / "r.json", json.dumps([{"image_id": 1, "category_id": 1, "score": 1, "segmentation": mask}]))
    assert read_results(path, keep_segmentations=True).area.tolist() == [4.0]
