"""Annotation files: an odd record is right, named, or noted; what the reference APIs pass over is counted and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scoring_worlds import perfect_world

from rar_mmdet.errors import AnnotationFileError
from rar_mmdet.scoring import COCO, LVIS, Detections, GroundTruth
from rar_mmdet.scoring.protocols import score

MISSING = object()


def detections(records: list[dict[str, Any]]) -> Detections:
    return Detections(
        np.array([r["image_id"] for r in records], object),
        np.array([r["category_id"] for r in records], object),
        np.array([r["bbox"] for r in records], float).reshape(-1, 4),
        np.array([r["score"] for r in records], float),
    )


def read(dataset: dict[str, Any], federated: bool = False) -> GroundTruth:
    return GroundTruth.from_dataset(dataset, federated=federated, where="annotation file val.json")


def put(record: dict[str, Any], key: str, value: Any) -> None:
    if value is MISSING:
        record.pop(key, None)
    else:
        record[key] = value


ODD_IDS = [None, True, 1.5, [1], {"a": 1}, float("nan"), float("inf"), MISSING]
ODD_NUMBERS = [None, True, "7", [1], float("nan"), float("inf"), 10**400, MISSING]
ODD_BOXES = [None, "1,2,3,4", [1, 2, 3], [1, 2, 3, 4, 0.9], [[1, 2, 3, 4]], ["1", "2", "3", "4"], [1, 2, None, 4], {}]


@pytest.mark.parametrize(
    ("section", "key", "values", "expected"),
    [
        *((s, "id", ODD_IDS, "expected a whole number or text") for s in ("images", "annotations", "categories")),
        ("annotations", "image_id", ODD_IDS, "expected a whole number or text"),
        ("annotations", "category_id", ODD_IDS, "expected a whole number or text"),
        ("annotations", "area", [*ODD_NUMBERS, -1], "expected (a finite number|square pixels from 0 on)"),
        ("annotations", "bbox", [*ODD_BOXES, MISSING], "expected four finite numbers x, y, width, height"),
        ("annotations", "bbox", [[5, 5, -1, 3], [5, 5, 3, -1]], "expected x, y, width, height with a size from 0 on"),
        ("annotations", "iscrowd", ["0", 2, [0], float("nan")], "expected 0 or 1"),
        ("annotations", "ignore", ["0", 2, [0]], "expected 0 or 1"),
        ("images", "height", ["480", -1, 480.5, True, [480], 10**30], "expected a whole number of pixels"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(section: str, key: str, values: list[Any], expected: str) -> None:
    for value in values:
        dataset, _ = perfect_world()
        put(dataset[section][1], key, value)
        with pytest.raises(AnnotationFileError, match=rf"val.json, {section}: record 1 .*has (no )?{key}.*{expected}"):
            read(dataset)


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("images", "neg_category_ids", [None, MISSING, 1, "1", {"1": 1}, [[1]], [True], [None]]),
        ("images", "not_exhaustive_category_ids", [None, MISSING, 1]),
        ("categories", "frequency", [None, MISSING, 1, "rare", "R", ""]),
    ],
)
def test_what_the_lvis_protocol_needs_is_named(section: str, key: str, values: list[Any]) -> None:
    for value in values:
        dataset, _ = perfect_world()
        put(dataset[section][1], key, value)
        with pytest.raises(AnnotationFileError, match=rf"{section}: record 1 .*has (no )?{key}.*coco protocol"):
            read(dataset, federated=True)
        read(dataset)


@pytest.mark.parametrize("record", [None, "a", 5, [1]])
@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_what_is_no_record_is_named(section: str, record: Any) -> None:
    dataset, _ = perfect_world()
    dataset[section][2] = record
    with pytest.raises(AnnotationFileError, match=rf"{section}: record 2 is .*, expected a dictionary with id, "):
        read(dataset)


@pytest.mark.parametrize("value", [None, {"1": {}}, "abc", 5])
def test_a_section_that_is_no_list_is_named(value: Any) -> None:
    for section in ("images", "categories"):
        dataset, _ = perfect_world()
        dataset[section] = value
        with pytest.raises(AnnotationFileError, match=f"val.json has no list of '{section}' .it is a"):
            read(dataset)
    with pytest.raises(AnnotationFileError, match="val.json holds a list, .*swapped"):
        read([])  # type: ignore[arg-type]


def change_images(change: Callable[[int], Any]) -> Callable[[dict, list], None]:
    def edit(dataset: dict[str, Any], records: list[dict[str, Any]]) -> None:
        for image in dataset["images"]:
            image["id"] = change(image["id"])
        for record in (*dataset["annotations"], *records):
            record["image_id"] = change(record["image_id"])

    return edit


@pytest.mark.parametrize("federated", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(str, id="text"),
        pytest.param(float, id="float"),
        pytest.param(lambda i: -i, id="negative"),
        pytest.param(lambda i: i + 2**80, id="huge"),
        pytest.param(lambda i: f"photos/{i}.jpg", id="file-names"),
    ],
)
def test_ids_of_any_kind_score_alike(change: Callable[[int], Any], federated: bool) -> None:
    dataset, records = perfect_world()
    change_images(change)(dataset, records)
    truth = read(dataset, federated)
    assert score(truth, detections(records), LVIS if federated else COCO).numbers["bbox_AP"] == pytest.approx(1)
    assert truth.notes == ()


def test_ids_of_two_kinds_are_refused() -> None:
    dataset, _ = perfect_world()
    dataset["images"][1]["id"] = "2"
    with pytest.raises(AnnotationFileError, match=r"images: ids mix text and numbers .'2', 1.; use one kind"):
        read(dataset)


@pytest.mark.parametrize(("key", "kind"), [("image_id", "image"), ("category_id", "category")])
@pytest.mark.parametrize("text", ["{}", "{:012d}", " {}"])
def test_ids_that_differ_in_type_only_are_named(key: str, kind: str, text: str) -> None:
    dataset, _ = perfect_world()
    for a in dataset["annotations"]:
        a[key] = text.format(a[key])
    with pytest.raises(
        AnnotationFileError, match=f"record 0 .* expected an id as the records of each {kind} have it: 1"
    ):
        read(dataset)


def test_categories_named_by_text_in_a_list_of_an_image_are_refused() -> None:
    dataset, _ = perfect_world()
    dataset["images"][1]["neg_category_ids"] = ["1"]
    with pytest.raises(
        AnnotationFileError, match="images: record 1 .*neg_category_ids.*expected ids as the categories"
    ):
        read(dataset, federated=True)
    dataset["images"][1]["neg_category_ids"] = [1, 99]
    assert any("1 entries of neg_category_ids are no category" in note for note in read(dataset, federated=True).notes)


def test_annotations_of_nothing_in_the_file_are_counted_or_refused() -> None:
    dataset, _ = perfect_world()
    dataset["annotations"][4]["image_id"] = 77
    dataset["annotations"][5]["category_id"] = 0
    truth = read(dataset)
    assert len(truth) == 7
    assert any("1 of 9 annotations have image_id 77" in note for note in truth.notes)
    assert any("1 of 9 annotations have category_id 0" in note for note in truth.notes)
    for a in dataset["annotations"]:
        a["image_id"] += 100
    with pytest.raises(
        AnnotationFileError, match="9 of 9 annotations have image_id 101, 102, 177, .*Nothing can be scored"
    ):
        read(dataset)


def test_repeated_ids_are_noted_and_contradictions_refused() -> None:
    dataset, _ = perfect_world()
    dataset["annotations"][1]["id"] = 1
    dataset["images"].append(dict(dataset["images"][0]))
    notes = read(dataset).notes
    assert any("annotations: 1 ids occur more than once, such as 1." in note for note in notes)
    assert any("images: 1 ids occur more than once" in note for note in notes)
    dataset["categories"].append({"id": 2, "name": "cow", "frequency": "r"})
    with pytest.raises(AnnotationFileError, match=r"categories: record 1 .*has id 2, expected an id of its own: 'cow'"):
        read(dataset)


def test_the_annotation_of_id_0_is_noted() -> None:
    dataset, _ = perfect_world()
    dataset["annotations"][3]["id"] = 0
    assert any(
        "record 3 .* the id 0 counts as never found".replace(".*", "(id 0, image_id 2):") in n
        for n in read(dataset).notes
    )


def test_missing_flags_and_sizes_are_none() -> None:
    dataset, records = perfect_world()
    for a in dataset["annotations"]:
        a["iscrowd"], a["ignore"] = None, None
    for image in dataset["images"]:
        image["height"], image["width"] = None, 0
    assert score(read(dataset), detections(records), COCO).numbers["bbox_AP"] == pytest.approx(1)


def corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def test_boxes_written_as_corners_or_fractions() -> None:
    dataset, _ = perfect_world()
    for a in dataset["annotations"]:
        a["bbox"] = corners(a["bbox"])
    assert any("3 of 9 boxes of the annotations" in n and "are these x1, y1, x2, y2" in n for n in read(dataset).notes)
    dataset, _ = perfect_world()
    for a in dataset["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x / 200, y / 100, w / 200, h / 100]
    with pytest.raises(AnnotationFileError, match="record 0 .* expected pixels. All 9 boxes lie within 0 and 1"):
        read(dataset)


def test_corners_that_hardly_leave_the_photo_are_noted_where_there_are_many() -> None:
    dataset, _ = perfect_world()
    for i, a in enumerate(dataset["annotations"] * 2):
        a["bbox"] = corners([5.0 + i, 5.0, 40.0, 40.0])
    assert read(dataset).notes == ()
    dataset["annotations"] += [a | {"id": a["id"] + 9} for a in dataset["annotations"]]
    dataset["annotations"][0]["bbox"] = corners([150.0, 10.0, 40.0, 40.0])
    assert any("1 of 18 boxes of the annotations" in note for note in read(dataset).notes)


def test_annotations_without_area_are_noted_under_lvis() -> None:
    dataset, _ = perfect_world()
    dataset["annotations"][0]["area"] = 0
    assert any("1 annotations have area 0" in note for note in read(dataset, federated=True).notes)


def test_a_good_file_has_no_notes() -> None:
    dataset, records = perfect_world()
    for federated, protocol in ((False, COCO), (True, LVIS)):
        truth = read(json.loads(json.dumps(dataset)), federated)
        assert (*truth.notes, *score(truth, detections(records), protocol).notes) == ()
