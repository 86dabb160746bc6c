"""Which boxes are refused, and how."""

import numpy as np
import pytest
import torch

from rar_mmdet.boxes import boxes_to_array
from rar_mmdet.errors import InvalidBoxError
from rar_mmdet.regions import RegionCropper, find_invalid_boxes, find_suspicious_boxes, validate_boxes

HW = (100, 200)
BAD = [
    pytest.param([np.nan, 0, 10, 10], "not finite", id="nan"),
    pytest.param([0, 0, np.inf, 10], "not finite", id="infinite"),
    pytest.param([10, 0, 5, 10], "inverted", id="inverted-x"),
    pytest.param([0, 10, 5, 5], "inverted", id="inverted-y"),
    pytest.param([5, 5, 5, 10], "empty", id="no-width"),
    pytest.param([5, 5, 10, 5], "empty", id="no-height"),
    pytest.param([200, 0, 210, 10], "entirely outside the photo of 200 x 100 px", id="right-of-photo"),
    pytest.param([0, -10, 10, 0], "entirely outside", id="above-photo"),
]


@pytest.mark.parametrize(("box", "reason"), BAD)
def test_bad_boxes_are_named_by_index(box, reason):
    boxes = np.array([[0, 0, 10, 10], box, [-5, -5, 1, 1]], dtype=float)
    assert list(find_invalid_boxes(boxes, HW)) == [1]
    with pytest.raises(InvalidBoxError, match=f"1 of 3 boxes.*box 1 .* is {reason}"):
        validate_boxes(boxes, HW)
    with pytest.raises(InvalidBoxError, match="box 1"):
        RegionCropper(size=8).crop(np.zeros((*HW, 3), np.uint8), boxes)


def test_good_boxes_pass_unchanged():
    boxes = torch.tensor([[0.0, 0.0, 200.0, 100.0], [199.5, 99.5, 300.0, 300.0], [-50.0, -50.0, 0.5, 0.5]])
    assert find_invalid_boxes(boxes, HW) == {}
    np.testing.assert_array_equal(validate_boxes(boxes, HW), boxes.numpy())


def test_many_bad_boxes_are_counted():
    with pytest.raises(InvalidBoxError, match="8 of 8 boxes.*and 3 more"):
        validate_boxes(np.zeros((8, 4)), HW)


def test_no_boxes():
    assert find_invalid_boxes([], HW) == {}
    assert validate_boxes(np.zeros((0, 4)), HW).shape == (0, 4)


@pytest.mark.parametrize("boxes", [[], [[]], (), np.zeros((0, 4)), torch.zeros(0, 4), torch.zeros(0), np.zeros((0, 0))])
def test_every_way_to_say_no_boxes(boxes):
    assert boxes_to_array(boxes).shape == (0, 4)


BOXES = np.array([[10, 20, 40, 60], [70, 5, 150, 95.0]])


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES.tolist(),
        tuple(map(tuple, BOXES)),
        BOXES.astype(np.float16),
        BOXES.astype(np.int8),
        BOXES.astype(">f4"),
        np.asfortranarray(BOXES)[::-1][::-1],
        torch.from_numpy(BOXES).bfloat16(),
        torch.from_numpy(BOXES).int().requires_grad_(False),
        torch.from_numpy(BOXES).requires_grad_(),
        list(torch.from_numpy(BOXES)),
        list(BOXES),
        BOXES.astype(object),
    ],
)
def test_every_way_to_give_boxes(boxes):
    found = boxes_to_array(boxes)
    assert found.dtype == np.float64
    expected = BOXES if not (isinstance(boxes, np.ndarray) and boxes.dtype == np.int8) else BOXES.astype(np.int8)
    np.testing.assert_array_equal(found, expected)


def with_columns(*columns):
    return np.concatenate([BOXES, np.array(columns, dtype=float).T], axis=1)


@pytest.mark.parametrize(
    ("boxes", "match"),
    [
        pytest.param([1, 2, 3, 4], r"\(4,\); wrap a single box: \[box\]", id="one-flat-box"),
        pytest.param(
            with_columns([0.9, 0.3]), r"\(2, 5\); the fifth column looks like scores.*box_scores", id="scores"
        ),
        pytest.param(with_columns([17, 3]), r"boxes are probably boxes\[:, :4\]", id="labels"),
        pytest.param(with_columns([0.9, 0.3], [17, 3]), r"\(2, 6\); the fifth column looks like scores", id="yolo"),
        pytest.param(
            with_columns([0, 1])[:, [4, 0, 1, 2, 3]],
            r"number of an image in a batch, the boxes are boxes\[:, 1:\]",
            id="batch-index",
        ),
        pytest.param(np.zeros((0, 5)), r"\(0, 5\)", id="no-boxes-of-five-columns"),
        pytest.param(np.zeros((5, 0)), r"\(5, 0\); a box is x1, y1, x2, y2", id="no-columns"),
        pytest.param(BOXES[:, :2], r"\(2, 2\); a box is x1, y1, x2, y2", id="points"),
        pytest.param(BOXES[None], r"\(1, 2, 4\); give the boxes of one image at a time: boxes\[0\]", id="batch"),
        pytest.param(torch.zeros(2, 4, 2), r"\(2, 4, 2\)", id="corners"),
        pytest.param(7, r"\(\)", id="number"),
    ],
)
def test_other_shapes_are_refused(boxes, match):
    with pytest.raises(InvalidBoxError, match=rf"boxes_xyxy must have shape \(R, 4\), got.*{match}"):
        validate_boxes(boxes, HW)
    with pytest.raises(InvalidBoxError, match=match):
        find_invalid_boxes(boxes, HW)


@pytest.mark.parametrize(
    ("boxes", "match"),
    [
        pytest.param(
            [[1, 2, 3, 4], [1, 2, None, 4]], r"row 1 is .*None.*holds NoneType.*without a box", id="none-inside"
        ),
        pytest.param([[1, 2, 3, 4], None], "makes no array", id="none-for-a-box"),
        pytest.param(None, "got NoneType", id="none"),
        pytest.param([[1, 2, "3", 4]], "row 0 is .*holds str_?. Convert text to numbers", id="text"),
        pytest.param([["1", "2", "3", "4"]], "row 0 is .*holds str_?", id="all-text"),
        pytest.param("1,2,3,4", "got str", id="a-text"),
        pytest.param([[1, 2, 3], [1, 2, 3, 4]], "this list makes no array", id="ragged"),
        pytest.param([{"x1": 1}], "row 0 is .*holds dict", id="dicts"),
        pytest.param([[True, False, True, True]], "row 0 is .*holds bool", id="bool"),
        pytest.param([[1j, 2, 3, 4]], "row 0 is .*holds complex", id="complex"),
        pytest.param((b for b in BOXES), "got generator", id="generator"),
        pytest.param(torch.zeros(2, 4, dtype=torch.bool), "got a tensor of torch.bool", id="bool-tensor"),
        pytest.param(torch.zeros(2, 4, dtype=torch.complex64), "got a tensor of torch.complex64", id="complex-tensor"),
    ],
)
def test_what_are_no_numbers_is_refused(boxes, match):
    with pytest.raises(InvalidBoxError, match=f"boxes_xyxy must be.*{match}"):
        validate_boxes(boxes, HW)


NORMALISED = BOXES / (200, 100, 200, 100)


@pytest.mark.parametrize(
    "boxes",
    [
        NORMALISED,
        NORMALISED + 0.09,  # predictions leave 0..1 now and then
        np.concatenate([NORMALISED, [[0, 0, 0, 0]]]),  # padding
        [[0, 0, 1, 1]],  # the whole photo
        [[0.5, 0.5, 0.25, 0.4]],  # centre, width and height
    ],
)
def test_boxes_in_0_to_1_are_named(boxes):
    reasons = find_invalid_boxes(boxes, HW)
    assert list(reasons) == list(range(len(boxes)))
    assert all("0..1, and the photo has 200 x 100 px; multiply x by 200 and y by 100" in r for r in reasons.values())
    with pytest.raises(InvalidBoxError, match=r"box 0 .* is normalised: all boxes lie in 0\.\.1"):
        RegionCropper(size=8).crop(np.zeros((*HW, 3), np.uint8), boxes)


@pytest.mark.parametrize(
    ("boxes", "hw"),
    [
        ([[0, 0, 1, 1]], (15, 200)),  # of a few pixels, one is a part
        ([[0.2, 0.2, 0.9, 0.9], [0, 0, 20, 30]], HW),
        ([[199.0, 99.0, 200.0, 100.0]], HW),
    ],
)
def test_small_boxes_are_no_fractions(boxes, hw):
    assert find_invalid_boxes(boxes, hw) == {}


def test_boxes_without_an_extent_are_empty_rather_than_normalised():
    assert set(find_invalid_boxes(np.zeros((3, 4)), HW).values()) == {"empty: zero width or height"}


def many_boxes(count=40, seed=0):
    """(count, 4) xyxy boxes within a photo of HW, in all its parts."""
    rng = np.random.default_rng(seed)
    wh = rng.uniform(10, 50, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (np.array([200, 100]) - wh)
    return np.concatenate([low, low + wh], axis=1)


def as_stored(boxes, box_format):
    low, high = boxes[:, :2], boxes[:, 2:]
    first = (low + high) / 2 if box_format == "cxcywh" else low
    return np.concatenate([first, high if box_format == "xyxy" else high - low], axis=1)


FORMATS = ("xyxy", "xywh", "cxcywh")


@pytest.mark.parametrize("said", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
def test_boxes_in_another_format_are_suspicious(stored, said):
    images = [as_stored(many_boxes(seed=seed), stored) for seed in range(3)]
    found = find_suspicious_boxes(images, [HW] * 3, said)
    if stored == said:
        assert found == []
    else:
        assert len(found) == 1
        assert f"they seem to be {stored}, where {said} is expected" in found[0]


def test_a_share_that_leaves_the_photo_is_suspicious():
    boxes = many_boxes()
    assert find_suspicious_boxes([boxes], [HW]) == []
    boxes[:8, 2] = 230  # a fifth: just enough to be quiet
    assert find_suspicious_boxes([boxes], [HW]) == []
    boxes[8, 3] = 103
    assert find_suspicious_boxes([boxes], [HW]) == [
        "9 of 40 boxes (22 %) are inverted or leave their image. Are they in pixels of another size of the images, or "
        "of an image before it was turned?"
    ]
    assert find_suspicious_boxes([many_boxes()[:, [1, 0, 3, 2]]], [HW]) != []  # turned by 90 degrees
    assert find_suspicious_boxes([many_boxes() * 2], [HW]) != []  # of a photo twice as large
    assert find_suspicious_boxes([[[-5, -5, 10, 10], [150, 50, 230, 120]]], [HW]) == []  # a share of two says nothing
    assert find_suspicious_boxes([many_boxes() + 1.5], [HW]) == []  # rounded outwards


def test_no_boxes_and_boxes_in_0_to_1_are_suspicious():
    assert find_suspicious_boxes([[]], [HW])[0].startswith("there is no box in the image: nothing will be recognised")
    assert "no box in the 2 images" in find_suspicious_boxes([[], np.zeros((0, 4))], [HW, HW])[0]
    assert "no box in the 0 images" in find_suspicious_boxes([], [])[0]
    assert find_suspicious_boxes([[], BOXES], [HW, HW]) == []
    for box_format in FORMATS:
        stored = [as_stored(NORMALISED, box_format), []]
        assert "all 2 boxes lie in 0..1" in find_suspicious_boxes(stored, [HW, HW], box_format)[0]
    assert find_suspicious_boxes([np.full((20, 4), np.nan)], [HW]) == []  # every one is refused by name later


def test_images_are_judged_by_their_own_sizes():
    boxes = [many_boxes(), many_boxes(seed=1) * 3]
    assert find_suspicious_boxes(boxes, [HW, (300, 600)]) == []
    assert find_suspicious_boxes(boxes, [(300, 600), HW]) != []
