"""Calibration and ranking of confidences against slow oracles and by hand."""

import numpy as np
import pytest

from rar_mmdet.report.sureness import (
    BINS,
    _error,
    auroc,
    brier,
    calibration_error,
    fit_temperature,
    reliability,
    risk_coverage,
    roc,
    tempered,
)


def forecasts(count, seed=0, temperature=1.0):
    """Confidences, and answers that are right with just that probability once divided by the temperature."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, count)
    correct = rng.uniform(size=count) < 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-logit * temperature)), correct


def test_the_error_of_a_calibrated_forecaster_is_its_sampling_error():
    confidence, correct = forecasts(20_000)
    found = reliability(confidence, correct)
    # Each bin's accuracy has a standard error of at most 0.5 / sqrt(n); the mean of |N(0, s)| is 0.8 s.
    sampling = np.mean([0.8 * np.sqrt(p.mean() * (1 - p.mean()) / len(p)) for p in
        np.array_split(np.sort(confidence), BINS)])  # fmt: skip
    assert found.error < 2 * sampling
    assert 0 <= found.low <= found.error <= found.high
    sure = reliability(*forecasts(20_000, temperature=3.0))
    assert sure.error > 10 * sampling
    assert sure.low > found.high


@pytest.mark.parametrize("count", [1, 7, 14, 15, 16, 100])
def test_the_error_equals_a_slow_loop(count):
    confidence, correct = forecasts(count, seed=count)
    order = np.argsort(confidence, kind="stable")
    expected = sum(
        len(part) / count * abs(confidence[part].mean() - correct[part].mean())
        for part in np.array_split(order, min(BINS, count))
    )
    found = reliability(confidence, correct)
    assert found.error == pytest.approx(expected, abs=1e-12)
    assert found.count.sum() == count
    assert found.count.max() - found.count.min() <= 1


def test_an_answer_taken_twice_is_two_answers():
    confidence, correct = forecasts(100, seed=5)
    order, rows = np.argsort(confidence), np.random.default_rng(0).integers(0, 100, 100)
    times = np.bincount(np.argsort(order)[rows], minlength=100)
    expected = calibration_error(confidence[rows], correct[rows])
    assert _error((confidence - correct)[order], BINS, times) == pytest.approx(expected, abs=1e-12)


def test_the_curve_of_kept_objects_and_empty_regions():
    scores, there = np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, True, False, False])
    empty, objects = roc(scores, there)
    assert empty.tolist() == [0, 0, 0.5, 1]
    assert objects.tolist() == [0, 0.5, 1, 1]
    assert np.trapezoid(objects, empty) == pytest.approx(auroc(scores, there))


def test_a_temperature_mends_what_it_was_fitted_on():
    confidence, correct = forecasts(50_000, temperature=2.0)
    assert tempered(confidence, 1.0) == pytest.approx(confidence, abs=1e-5)
    mended = tempered(confidence, fit_temperature(confidence, correct))
    assert calibration_error(mended, correct) < 0.3 * calibration_error(confidence, correct)


def test_brier_by_hand():
    assert brier(np.array([0.8, 0.4]), np.array([True, False])) == pytest.approx((0.04 + 0.16) / 2)
    assert np.isnan(brier(np.zeros(0), np.zeros(0, bool)))


def test_auroc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 8, 60) / 8, rng.uniform(size=60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auroc(scores, ~positive) == pytest.approx(1 - np.mean(pairs))
    assert np.isnan(auroc(scores, np.ones(60, bool)))


def test_risk_by_hand():
    curve = risk_coverage(np.array([0.9, 0.7, 0.8, 0.6]), np.array([True, False, True, True]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert curve.area == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert curve.coverage_at(0.95) == 0.5
    assert curve.coverage_at(0.75) == 1.0
    wrong = risk_coverage(np.array([0.9]), np.array([False]))
    assert wrong.coverage_at(0.5) == 0


def test_the_order_of_equally_sure_answers_does_not_matter():
    confidence, correct = np.array([0.5, 0.5, 0.5, 0.9]), np.array([True, False, False, True])
    one = risk_coverage(confidence, correct)
    other = risk_coverage(confidence[::-1], correct[::-1])
    np.testing.assert_allclose(one.risk, other.risk)
    assert one.risk == pytest.approx([0, (2 / 3) / 2, (4 / 3) / 3, 2 / 4])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_found_again(temperature):
    assert fit_temperature(*forecasts(50_000, temperature=temperature)) == pytest.approx(temperature, rel=0.05)


def test_nothing_is_nan_and_no_error():
    nothing = np.zeros(0), np.zeros(0, bool)
    assert np.isnan(reliability(*nothing).error)
    assert np.isnan(fit_temperature(*nothing))
    assert np.isnan(risk_coverage(*nothing).area)
    assert risk_coverage(*nothing).coverage_at(0.5) == 0
