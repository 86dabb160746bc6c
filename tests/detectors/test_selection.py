"""Which of a detector's boxes are recognised."""

import pytest
import torch
from torchvision.ops import box_iou

from rar_mmdet.detectors.selection import RegionSelection
from rar_mmdet.errors import ConfigError
from rar_mmdet.testing import make_boxes


def test_nms_leaves_no_overlap_and_keeps_the_best():
    boxes, scores = make_boxes(200), torch.rand(200)
    kept, rows = RegionSelection(nms_iou=0.4)(boxes, scores, (60, 80))
    assert torch.equal(kept, boxes[rows])
    overlaps = box_iou(kept, kept).fill_diagonal_(0)
    assert overlaps.max() <= 0.4
    assert rows[0] == scores.argmax()
    assert (scores[rows].diff() <= 0).all()


def test_equal_scores_keep_their_order():
    _, rows = RegionSelection(max_regions=5)(make_boxes(9), torch.ones(9), (60, 80))
    assert rows.tolist() == [0, 1, 2, 3, 4]


def test_boxes_are_cut_at_the_border_and_small_ones_dropped():
    boxes = torch.tensor(
        [[-10.0, 5, 10, 20], [5, 5, 5.5, 20], [90, 5, 99, 20], [float("nan"), 0, 5, 5], [0, 0, float("inf"), 5]]
    )
    kept, rows = RegionSelection()(boxes, torch.ones(5), (60, 80))
    assert rows.tolist() == [0, 4]
    assert kept.tolist() == [[0, 5, 10, 20], [0, 0, 80, 5]]


def test_no_boxes():
    kept, rows = RegionSelection(nms_iou=0.5)(torch.zeros(0, 4), torch.zeros(0), (60, 80))
    assert kept.shape == (0, 4)
    assert rows.shape == (0,)


@pytest.mark.parametrize("key", ["max_regions", "nms_iou", "min_size"])
def test_bad_values(key):
    with pytest.raises(ConfigError, match=key):
        RegionSelection(**{key: 0})
