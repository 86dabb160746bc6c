"""Scale policies: the paper's bins, and the curve through them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rar_mmdet.regions import AreaScale, FixedScale, SmoothAreaScale


def squares(*sides):
    return np.array([[0, 0, side, side] for side in sides], dtype=float).reshape(-1, 4)


def test_fixed():
    np.testing.assert_array_equal(FixedScale(1.6)(squares(3, 300)), [1.6, 1.6])


def test_area_bins_are_cocos():
    factors = AreaScale()(squares(31.9, 32, 95.9, 96, 500))
    np.testing.assert_array_equal(factors, [2.8, 1.6, 1.6, 1.0, 1.0])  # paper Table 11


def test_area_not_side_decides():
    thin = np.array([[0, 0, 300, 3]], dtype=float)  # 900 px^2
    np.testing.assert_array_equal(AreaScale(3, 2, 1)(thin), [3])


def test_smooth_passes_through_the_factors_at_the_middles_of_the_bins():
    middle = np.sqrt(32 * 96)
    knots = squares(middle / 3, middle, middle * 3)
    np.testing.assert_allclose(SmoothAreaScale()(knots), [2.8, 1.6, 1.0])
    np.testing.assert_allclose(SmoothAreaScale()(squares(2, 2000)), [2.8, 1.0])


def test_smooth_does_not_jump_at_the_border_of_a_bin():
    below, above = SmoothAreaScale()(squares(31.9, 32.1))
    assert 1 < below / above < 1.01


@given(st.floats(1, 1000), st.floats(1, 1000))
def test_smooth_falls_with_the_area(a, b):
    small, large = SmoothAreaScale()(squares(min(a, b), max(a, b)))
    assert small >= large


@pytest.mark.parametrize("policy", [FixedScale(2), AreaScale(), SmoothAreaScale()])
def test_no_boxes(policy):
    assert policy(squares()).shape == (0,)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: FixedScale(0), "factor=0"),
        (lambda: AreaScale(medium=-1), "medium=-1"),
        (lambda: AreaScale(large=float("nan")), "large=nan"),
        (lambda: AreaScale(bounds=(96, 32)), "bounds="),
        (lambda: SmoothAreaScale(bounds=(1, 2, 3)), "bounds="),
    ],
)
def test_wrong_values_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
