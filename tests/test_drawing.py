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


def test_labels_of_neighbours_do_not_hide_each_other():
    """Solid labels: where two of them lay on each other, fewer pixels than both together would be filled."""
    photo = np.zeros((200, 200, 3), np.uint8)
    near = torch.tensor([[60.0, 80.0, 70.0, 90.0], [62.0, 81.0, 73.0, 92.0]])

    def changed(boxes, labels, categories):
        return (np.asarray(draw_regions(photo, boxes, labels, categories)) != 0).any(-1)

    first, second = changed(near[:1], ["dog"], [0]), changed(near[1:], ["dog"], [0])
    assert (first & second).sum() > 100
    both = changed(near, ["dog", "dog"], [0, 1])
    outlines = changed(near, ["", ""], [0, 1]).sum()
    alone = changed(near[:1], ["dog"], [0]).sum() - changed(near[:1], [""], [0]).sum()
    assert both.sum() >= outlines + 1.8 * alone
