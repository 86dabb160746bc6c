"""Features of boxes against a slow loop, and where boxes are odd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_pooling import pool

from rar_mmdet.encoders.region_pooling import boxes_in_cells, check_boxes, pool_boxes
from rar_mmdet.errors import InvalidBoxError
from rar_mmdet.testing import make_boxes

IMAGE_HW, GRID_HW = (120, 200), (6, 9)
ODD = [
    [0, 0, 200, 120],  # the whole photo
    [200 / 9, 20, 400 / 9, 40],  # exactly one cell
    [50, 50, 52, 51],  # less than one
    [-40, -30, 60, 50],  # partly outside
    [180, 100, 260, 150],
    [3, 2, 4, 118],  # thin
]


@pytest.fixture(scope="module")
def grid():
    return torch.randn(5, *GRID_HW, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("boxes", [pytest.param(ODD, id="odd"), pytest.param(make_boxes(40, *IMAGE_HW), id="random")])
def test_equals_a_slow_loop_in_double_precision(grid, boxes):
    cells = boxes_in_cells(boxes, IMAGE_HW, GRID_HW)
    expected = np.stack([pool(grid.double().numpy(), box)[:, 0, 0] for box in cells.double().numpy()])
    np.testing.assert_allclose(pool_boxes(grid, cells).numpy(), expected, atol=2e-6)


def test_one_cell_is_its_own_feature(grid):
    cells = torch.tensor([[3.0, 2.0, 4.0, 3.0]])
    torch.testing.assert_close(pool_boxes(grid, cells)[0], grid[:, 2, 3])


def test_mirrored_grid_and_boxes_give_the_same(grid):
    boxes = torch.as_tensor(np.concatenate([np.array(ODD, dtype=np.float64), make_boxes(20, *IMAGE_HW).numpy()]))
    mirrored = torch.stack([200 - boxes[:, 2], boxes[:, 1], 200 - boxes[:, 0], boxes[:, 3]], dim=1)
    found = pool_boxes(grid.flip(2), boxes_in_cells(mirrored, IMAGE_HW, GRID_HW))
    torch.testing.assert_close(found, pool_boxes(grid, boxes_in_cells(boxes, IMAGE_HW, GRID_HW)), atol=1e-5, rtol=0)


def test_no_boxes(grid):
    assert pool_boxes(grid, boxes_in_cells([], IMAGE_HW, GRID_HW)).shape == (0, 5)


def test_half_precision_is_pooled_in_full(grid):
    cells = boxes_in_cells(ODD, IMAGE_HW, GRID_HW)
    found = pool_boxes(grid.bfloat16(), cells)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool_boxes(grid.bfloat16().float(), cells))


def test_a_box_of_no_area_gives_zeros_and_is_refused_before(grid):
    box = [[10.0, 10.0, 10.0, 30.0]]
    assert not pool_boxes(grid, boxes_in_cells(box, IMAGE_HW, GRID_HW)).any()
    with pytest.raises(InvalidBoxError, match="box 0 .* no area within a photo of 200x120 px"):
        check_boxes(box, IMAGE_HW)


def test_boxes_that_touch_the_photo_are_good():
    assert check_boxes([[-10, -10, 0.5, 0.5], [199, 119, 900, 900]], IMAGE_HW).shape == (2, 4)
    with pytest.raises(InvalidBoxError, match="box 1"):
        check_boxes([[0, 0, 5, 5], [200, 0, 210, 5]], IMAGE_HW)
