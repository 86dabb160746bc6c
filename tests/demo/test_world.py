"""The renderer: what it says it drew is where it says it is, and the same draws give the same bytes."""

import numpy as np
import pytest
from world import (
    ATTRIBUTES,
    CLASS_NAMES,
    COLOURS,
    PATTERNS,
    SHAPES,
    Thing,
    blur_outside,
    draw_crop,
    draw_photo,
    rare_classes,
    train_image_quota,
)


def test_classes_are_the_product_of_their_attributes():
    assert len(set(CLASS_NAMES)) == 600
    for name, (colour, pattern, shape) in zip(CLASS_NAMES, ATTRIBUTES, strict=True):
        assert name == f"{PATTERNS[pattern]} {list(COLOURS)[colour]} {SHAPES[shape]}"


def test_tail_is_long_and_covers_every_attribute():
    quota, rare = train_image_quota(), rare_classes()
    assert quota.max() > 15 * quota.min()
    assert 0.2 < len(rare) / 600 < 0.4
    known = np.setdiff1d(np.arange(600), rare)
    for part, names in enumerate((COLOURS, PATTERNS, SHAPES)):
        assert len(set(ATTRIBUTES[known, part])) == len(names)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [16.0, 47.0, 120.0])
def test_visible_box_has_the_asked_side_and_place(shape, side):
    thing = Thing(CLASS_NAMES.index(f"plain blue {shape}"), 100.3, 90.7, side)
    _, (mask,) = draw_photo(np.random.default_rng(0), [thing], 200, 180)
    (y1, y2), (x1, x2) = (np.flatnonzero(mask.any(axis))[[0, -1]] + (0, 1) for axis in (1, 0))
    assert max(x2 - x1, y2 - y1) == pytest.approx(side, abs=2.5)
    assert (x1 + x2) / 2 == pytest.approx(thing.cx, abs=1.6)
    assert (y1 + y2) / 2 == pytest.approx(thing.cy, abs=1.6)


def test_later_things_hide_earlier_ones_and_masks_are_disjoint():
    square = CLASS_NAMES.index("plain red square")
    below, above = Thing(square, 60, 60, 50), Thing(square, 75, 60, 50)
    _, masks = draw_photo(np.random.default_rng(1), [below, above], 140, 120)
    _, (alone,) = draw_photo(np.random.default_rng(1), [below], 140, 120)
    assert not (masks[0] & masks[1]).any()
    assert masks[0].sum() < alone.sum()
    assert (masks[0] <= alone).all()


def test_things_outside_the_photo_are_invisible_not_an_error():
    _, masks = draw_photo(np.random.default_rng(1), [Thing(0, -40, 50, 30), Thing(0, 500, 50, 30)], 100, 90)
    assert [mask.sum() for mask in masks] == [0, 0]


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow"])
def test_middle_of_a_plain_crop_has_the_colour_it_is_named_after(colour):
    rng, square = np.random.default_rng(2), CLASS_NAMES.index(f"plain {colour} square")
    crops = np.stack([draw_crop(rng, square, np.array([square]), 1.5, 64) for _ in range(8)])
    red, green, blue = np.median(crops[:, 28:36, 28:36], axis=(0, 1, 2))
    order = {"red": red > 2 * max(green, blue), "green": green > max(red, blue), "blue": blue > max(red, green)}
    assert order.get(colour, min(red, green) > 2 * blue)


def test_same_draws_give_the_same_bytes_and_others_do_not():
    crops = [draw_crop(np.random.default_rng(s), 7, np.arange(600), 2.0, 48, 0.05) for s in (4, 4, 5)]
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()


def test_blur_outside_leaves_the_box_alone():
    crop = draw_crop(np.random.default_rng(6), 7, np.arange(600), 2.0, 64)
    blurred = blur_outside(crop, 2.0, 0.05)
    assert (blurred[16:48, 16:48] == crop[16:48, 16:48]).all()
    assert blurred[:10].astype(float).std() < crop[:10].astype(float).std()
