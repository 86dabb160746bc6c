"""Accuracy, its interval and McNemar's test against slow oracles."""

import numpy as np
import pytest
from scipy.stats import binomtest

from rar_mmdet.errors import MetricConfigError
from rar_mmdet.scoring.accuracy import accuracy, compare_accuracy, mcnemar


def test_interval_is_that_of_resampled_photos():
    rng = np.random.default_rng(0)
    correct = rng.uniform(size=400) < 0.7
    resampled = [correct[rng.integers(0, 400, 400)].mean() for _ in range(4000)]
    found = accuracy(correct)
    assert found.value == correct.mean()
    assert found.count == 400
    np.testing.assert_allclose([found.low, found.high], np.quantile(resampled, [0.025, 0.975]), atol=0.006)
    assert accuracy(correct) == found


def test_paired_interval_is_that_of_resampled_photos():
    rng = np.random.default_rng(1)
    first = rng.uniform(size=300) < 0.6
    other = np.where(rng.uniform(size=300) < 0.8, first, rng.uniform(size=300) < 0.4)
    picks = [rng.integers(0, 300, 300) for _ in range(4000)]
    resampled = [first[pick].mean() - other[pick].mean() for pick in picks]
    found = compare_accuracy(first, other)
    np.testing.assert_allclose([found.low, found.high], np.quantile(resampled, [0.025, 0.975]), atol=0.008)
    assert found.difference == pytest.approx(first.mean() - other.mean())
    assert found.only_first == sum(a and not b for a, b in zip(first, other, strict=True))
    assert found.only_first - found.only_other == round(300 * found.difference)
    turned = compare_accuracy(other, first)
    assert turned.difference == -found.difference
    assert turned.p_value == found.p_value


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (3, 12), (30, 9), (900, 1000), (20000, 21000)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-8)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_all_right_has_no_width():
    found = accuracy([True] * 5)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    same = compare_accuracy([True, False], [True, False])
    assert (same.low, same.high, same.p_value) == (0, 0, 1)


@pytest.mark.parametrize("values", [[], [0, 1], [[True]]], ids=["none", "numbers", "table"])
def test_what_is_no_list_of_booleans_is_refused(values):
    with pytest.raises(MetricConfigError, match=r"takes \(Q,\) booleans"):
        accuracy(values)


def test_other_photos_are_refused():
    with pytest.raises(MetricConfigError, match="2 photos of the first way and 1 of the other"):
        compare_accuracy([True, False], [True])
