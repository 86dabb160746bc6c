"""Results and annotations that do not belong together: refused by name, or said before the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scoring_worlds import perfect_world

from rar_mmdet.errors import UnknownCategoryError, UnknownImageError
from rar_mmdet.scoring import COCO, LVIS, Detections, GroundTruth
from rar_mmdet.scoring.identifiers import as_column
from rar_mmdet.scoring.protocols import Score, score

SEGM = COCO.having(iou_type="segm")


def scored(edit: Callable[[dict, list], Any], protocol: Any = COCO) -> Score:
    dataset, records = perfect_world()
    edit(dataset, records)
    truth = GroundTruth.from_dataset(
        dataset, federated=protocol.federated, keep_segmentations=protocol.iou_type == "segm"
    )
    found = Detections(
        as_column([r["image_id"] for r in records]),
        as_column([r["category_id"] for r in records]),
        np.array([r["bbox"] for r in records], float).reshape(-1, 4),
        np.array([r["score"] for r in records], float),
    )
    return score(truth, found, protocol)


def each(key: str, change: Callable[[Any], Any]) -> Callable[[dict, list], None]:
    def edit(dataset: dict, records: list) -> None:
        for r in records:
            r[key] = change(r[key])

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            str, "detection 0 is of image '1', .* The annotations have 1: write image_id as they do", id="text"
        ),
        pytest.param(lambda i: f"{i:012d}", "image '000000000001', .* The annotations have 1: write", id="padded"),
        pytest.param(lambda i: i + 100, "9 of 9 detections .images 101, 102, 103; .* of another split", id="split"),
        pytest.param(lambda i: i - 1, "3 of 9 detections .images 0; .* Are some of another split", id="from-0"),
    ],
)
def test_images_the_annotations_do_not_have(change: Callable[[int], Any], message: str) -> None:
    with pytest.raises(UnknownImageError, match=message):
        scored(each("image_id", change))


def test_category_ids_that_differ_in_type_only() -> None:
    with pytest.raises(
        UnknownCategoryError, match="detection 0 has category_id '1', the annotations have 1: .* .9 of 9"
    ):
        scored(each("category_id", str))


@pytest.mark.parametrize("protocol", [COCO, LVIS])
def test_category_ids_counted_from_0(protocol: Any) -> None:
    found = scored(each("category_id", lambda c: c - 1), protocol)
    assert found.numbers["bbox_AP"] == 0
    assert any(
        "3 of 9 detections are left out: category_id 0 is no category" in n and "places in the list" in n
        for n in found.notes
    )
    assert any("the boxes find" in note and "categories are left aside" in note for note in found.notes)


def test_some_unknown_categories_are_counted() -> None:
    found = scored(lambda dataset, records: records.append(records[0] | {"category_id": 77}))
    assert found.numbers["bbox_AP"] == pytest.approx(1)
    (note,) = found.notes
    assert (
        "1 of 10 detections are left out: category_id 77 is no category of the annotations, which have 3 (1 to 3)"
        in note
    )


@pytest.mark.parametrize(
    ("edit", "value", "message"),
    [
        pytest.param(
            each("category_id", lambda c: c % 3 + 1), 0, "the boxes find 100% of the objects when", id="vocabulary"
        ),
        pytest.param(each("bbox", lambda b: [v / 200 for v in b]), 0, "within 0 and 1", id="fractions"),
        pytest.param(each("bbox", lambda b: [v / 200 for v in b]), 0, "find 0% of the objects", id="nowhere"),
        pytest.param(each("category_id", lambda c: c % 3 + 1), 0, "enough", id="no-match"),
        pytest.param(each("bbox", lambda b: [2 * v for v in b]), 0, "9 of 9 boxes of the detections leave", id="scale"),
        pytest.param(lambda dataset, records: records.clear(), 0, "there is no detection at all", id="no-detection"),
        pytest.param(lambda dataset, records: dataset["annotations"].clear(), -1, "there are none", id="no-annotation"),
        pytest.param(
            lambda dataset, records: [a.update(iscrowd=1) for a in dataset["annotations"]],
            -1,
            "all are crowds",
            id="crowds",
        ),
    ],
)
def test_a_zero_is_never_silent(edit: Callable[[dict, list], Any], value: float, message: str) -> None:
    found = scored(edit)
    assert found.numbers["bbox_AP"] == value
    assert any(message in note for note in found.notes), found.notes


def test_boxes_written_as_corners() -> None:
    found = scored(each("bbox", lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]))
    assert any("3 of 9 boxes of the detections leave their photo" in note for note in found.notes)


def test_boxes_that_stand_for_masks_are_counted() -> None:
    assert any("9 of 9 detections have no mask" in note for note in scored(lambda d, r: None, SEGM).notes)


def test_scores_that_order_nothing() -> None:
    found = scored(each("score", lambda _: 0.0))
    assert found.notes == (
        "all 9 detections have the score 0: average precision then follows their order in the file. Does the detector "
        "give scores?",
    )
