"""Which boxes are refused, and how."""

import numpy as np
import pytest
import torch

from rar_mmdet.errors import InvalidBoxError
from rar_mmdet.regions import RegionCropper, find_invalid_boxes, validate_boxes

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


@pytest.mark.parametrize("boxes", [[1, 2, 3, 4], np.zeros((3, 5))], ids=["one-flat-box", "five-columns"])
def test_other_shapes_are_refused(boxes):
    with pytest.raises(InvalidBoxError, match=r"shape \(R, 4\), got"):
        validate_boxes(boxes, HW)
