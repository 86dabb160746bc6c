"""Labels stay inside the photo, whatever the box."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rar_mmdet.drawing import draw_regions, label_place
from rar_mmdet.testing import make_boxes, make_image


@given(st.floats(-50, 300), st.floats(-50, 300), st.floats(1, 200), st.floats(1, 100))
def test_a_label_that_fits_lies_inside(x, y, width, height):
    left, top = label_place((x, y), (width, height), (200, 100))
    assert left >= 0
    assert top >= 0
    assert left + width <= 200 + 1e-6
    assert top + height <= 100 + 1e-6


def test_nothing_to_draw_leaves_the_photo_as_it_is():
    image = make_image()
    assert (np.asarray(draw_regions(image, torch.zeros(0, 4), [], [])) == image).all()


def test_equal_categories_have_one_colour():
    image = np.zeros((60, 80, 3), np.uint8)
    boxes = make_boxes(1)
    one, same, other = (np.asarray(draw_regions(image, boxes, [""], [i])) for i in (3, 3, 4))
    assert (one == same).all()
    assert (one != other).any()
