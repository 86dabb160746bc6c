"""Masks are checked before pycocotools sees them: sums of run lengths by hand and against its own encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from scoring_worlds import perfect_world, run_lengths

from rar_mmdet.errors import AnnotationFileError, ResultFileError
from rar_mmdet.scoring import COCO, Detections, GroundTruth, coco_summary, evaluate
from rar_mmdet.scoring.masks import find_wrong_mask, run_totals
from rar_mmdet.scoring.protocols import score

SEGM = COCO.having(iou_type="segm")
RLE = run_lengths([10, 10, 40, 50])
SQUARE = [10.0, 10.0, 50.0, 10.0, 50.0, 60.0, 10.0, 60.0]


def encode(counts: list[int]) -> bytes:
    """Run lengths as text, written as the format says: 6 bits a character, differences from the fourth on."""
    text = bytearray()
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text.append(48 + (c | 0x20 if more else c))
    return bytes(text)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=9), max_size=6))
def test_totals_of_any_run_lengths(runs: list[list[int]]) -> None:
    assert run_totals([encode(r) for r in runs]).tolist() == [sum(r) for r in runs]


@pytest.mark.parametrize("seed", range(3))
def test_totals_of_pycocotools_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hws = rng.integers(1, 60, (40, 2))
    masks = [mask_api.encode(np.asfortranarray(rng.random(hw) < rng.random(), np.uint8)) for hw in hws]
    assert run_totals([m["counts"] for m in masks]).tolist() == hws.prod(axis=1).tolist()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x20", id="no-such-character"),
        pytest.param("é".encode(), id="not-ascii"),
        pytest.param(encode([5, 9, 400])[:-1], id="cut-in-a-number"),
        pytest.param(encode([5, 3, 9, -2, 9]), id="negative-run"),
        pytest.param(encode([-5, 3]), id="negative-first-run"),
        pytest.param(b"o" * 9 + b"0", id="number-too-long"),
    ],
)
def test_broken_texts_have_no_total(text: bytes) -> None:
    good = encode([3, 4])
    assert run_totals([good, text, good]).tolist() == [7, -1, 7]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        pytest.param(RLE | {"counts": RLE["counts"][:-3]}, "run lengths|no compressed run length", id="cut-off"),
        pytest.param(RLE | {"size": [100, 400]}, "add up to 20000 pixels, a mask of 100 x 400 has 40000", id="size"),
        pytest.param({"size": [2, 3], "counts": [1, 4]}, "add up to 5 pixels, a mask of 2 x 3 has 6", id="list-sum"),
        pytest.param({"size": [2, 3], "counts": [-1, 7]}, "whole numbers from 0 on", id="negative"),
        pytest.param({"size": [2, 3], "counts": [1.0, 5.0]}, "whole numbers from 0 on", id="floats"),
        pytest.param({"size": [2, 3], "counts": None}, "neither text nor a list", id="null-counts"),
        pytest.param({"size": [2, 3]}, "expected polygons .* or run lengths", id="no-counts"),
        pytest.param({"counts": "0"}, "expected polygons .* or run lengths", id="no-size"),
        pytest.param({"size": "2x3", "counts": "0"}, "`size` is '2x3', expected .height, width.", id="text-size"),
        pytest.param({"size": [10**6, 10**6], "counts": [10**12]}, "expected pixels from 0 to", id="huge"),
        pytest.param("abc", "expected polygons", id="text"),
        pytest.param([], "it is empty", id="empty-list"),
        pytest.param([[]], "fewer than three points", id="empty-polygon"),
        pytest.param([[1.0, 2.0]], "fewer than three points", id="point"),
        pytest.param([[1.0, 2.0, 3.0, 4.0]], "fewer than three points", id="line"),
        pytest.param(SQUARE, "it is a flat list", id="flat"),
        pytest.param([[[1, 2], [3, 4], [5, 6]]], "holds .1, 2. where a number is expected", id="pairs"),
        pytest.param([None], "some of its polygons are no lists", id="null-polygon"),
        pytest.param([[*SQUARE, 1.0]], "odd count of numbers", id="odd"),
        pytest.param([["1", "2", "3", "4", "5", "6"]], "holds '1' where a number is expected", id="text-numbers"),
        pytest.param([[True] * 6], "holds True where a number", id="bools"),
        pytest.param([[float("nan"), *SQUARE[1:]]], "not a number of pixels", id="nan"),
        pytest.param([[1e18, *SQUARE[1:]]], "not a number of pixels", id="far"),
    ],
)
def test_unusable_masks_are_named(mask: Any, message: str) -> None:
    found = find_wrong_mask([RLE, None, mask, "also wrong"])
    assert found is not None
    assert found[0] == 2
    dataset = perfect_world()[0]
    dataset["annotations"][4]["segmentation"] = mask
    with pytest.raises(AnnotationFileError, match=rf"record 4 \(id 5, image_id 2\) has segmentation .*({message})"):
        GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
    GroundTruth.from_dataset(dataset, federated=False)  # boxes do not need it


def detections(records: list[dict[str, Any]], masks: list[Any]) -> Detections:
    return Detections(
        np.array([r["image_id"] for r in records]),
        np.array([r["category_id"] for r in records]),
        np.array([r["bbox"] for r in records]),
        np.array([r["score"] for r in records]),
        masks,
    )


def uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    pixels = mask_api.decode({**rle, "counts": rle["counts"].encode()}).flatten(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, len(pixels)]).tolist()
    return {"size": rle["size"], "counts": [0, *runs] if pixels[0] else runs}


def test_every_form_of_a_mask_scores_alike() -> None:
    dataset, records = perfect_world()
    boxes = [a["bbox"] for a in dataset["annotations"]]
    rles = [run_lengths(box) for box in boxes]
    forms = {
        "polygons": [a["segmentation"] for a in dataset["annotations"]],
        "polygons and a point": [[[1.0, 1.0], *a["segmentation"]] for a in dataset["annotations"]],
        "compressed": rles,
        "bytes": [{**rle, "counts": rle["counts"].encode()} for rle in rles],
        "lists": [uncompressed(rle) for rle in rles],
        "rectangles of the boxes": [None] * len(rles),
    }
    for annotated in list(forms.values())[:-1]:
        for a, mask in zip(dataset["annotations"], annotated, strict=True):
            a["segmentation"] = mask
        truth = GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
        for found in forms.values():
            assert coco_summary(evaluate(truth, detections(records, found), SEGM))[0] == pytest.approx(1)


def test_masks_of_another_size_than_their_image() -> None:
    dataset, records = perfect_world()
    rles = [run_lengths(r["bbox"]) for r in records]
    wide = run_lengths(records[0]["bbox"], 200, 400)
    truth = GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
    with pytest.raises(ResultFileError, match="detection 0 .image 1. has a mask of 200 x 400, its image is 100 x 200"):
        score(truth, detections(records, [wide, *rles[1:]]), SEGM)
    dataset["annotations"][0]["segmentation"] = wide
    truth = GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
    assert any("its mask is 200 x 400, its image 100 x 200" in note for note in truth.notes)
    with pytest.raises(
        ResultFileError, match="image 1: masks of the detections are 100 x 200 and those of the annotat"
    ):
        score(truth, detections(records, rles), SEGM)


def test_images_without_size() -> None:
    dataset, records = perfect_world()
    for image in dataset["images"]:
        image["height"] = None
        del image["width"]
    rles = [run_lengths(r["bbox"]) for r in records]
    with pytest.raises(
        AnnotationFileError, match="expected height and width of its image, which polygons are drawn into"
    ):
        GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
    for a, rle in zip(dataset["annotations"], rles, strict=True):
        a["segmentation"] = rle
    truth = GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
    for found in (rles, [None] * len(rles)):
        assert score(truth, detections(records, found), SEGM).numbers["segm_AP"] == pytest.approx(1)


def test_an_annotation_without_a_mask_is_named() -> None:
    dataset, _ = perfect_world()
    dataset["annotations"][3]["segmentation"] = None
    with pytest.raises(AnnotationFileError, match="record 3 .* has segmentation None, expected a mask; without masks"):
        GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)


def test_a_mask_stands_in_for_a_box() -> None:
    dataset, _ = perfect_world()
    for a in dataset["annotations"]:
        a["bbox"] = None
    truth = GroundTruth.from_dataset(dataset, federated=False, keep_segmentations=True)
    assert np.isnan(truth.boxes_xywh).all()
