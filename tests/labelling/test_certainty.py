"""Probabilities learned from reviewed labels: an optimum, calibrated, and safe where people saw only the doubtful."""

import numpy as np
import pytest

from rar_mmdet.labelling.certainty import RIDGE, SIGNS, WORD_RIDGE, fit_certainty, logit, words_of
from rar_mmdet.labelling.decisions import choices, decide, signs_of
from rar_mmdet.labelling.labeller import THRESHOLDS, score_for
from rar_mmdet.labelling.words import read_words
from rar_mmdet.records import RegionRecord


def world(count, seed=0, names=("red cat", "blue cat", "blue dog")):
    """Signs whose first two columns tell, by a known law, whether a label is right; "dog" is often wrong."""
    rng = np.random.default_rng(seed)
    signs = rng.normal(size=(count, len(SIGNS)))
    told = [names[i] for i in rng.integers(len(names), size=count)]
    truth = 1 / (1 + np.exp(-(1.5 * signs[:, 0] - signs[:, 1] + 0.5 - 2.0 * np.array(["dog" in n for n in told]))))
    return signs, [words_of(name) for name in told], rng.random(count) < truth, truth


def test_it_finds_the_law_and_its_words():
    signs, names, right, _ = world(4000)
    sure = fit_certainty(signs, names, right)
    assert sure.words == ("blue", "cat", "dog", "red")
    fresh, told, _, truth = world(2000, seed=1)
    found = sure.probability(fresh, told)
    assert np.abs(found - truth).mean() < 0.04
    for low in np.arange(0, 1, 0.2):  # calibrated in every fifth
        rows = (found >= low) & (found < low + 0.2)
        assert found[rows].mean() == pytest.approx(truth[rows].mean(), abs=0.05)


def test_the_fit_is_the_minimum_of_its_loss():
    signs, names, right, _ = world(300)
    sure = fit_certainty(signs, names, right)

    def loss(weights):
        rows = np.array([[*s, *(w in n for w in sure.words)] for s, n in zip(signs, names, strict=True)])
        rows = (rows - np.array(sure.centre)) / np.array(sure.spread)
        start = np.zeros(len(weights))
        start[0], start[-1] = sure.spread[0], sure.centre[0]
        ridge = np.array([RIDGE] * len(SIGNS) + [WORD_RIDGE] * len(sure.words) + [RIDGE])
        p = 1 / (1 + np.exp(-(rows @ weights[:-1] + weights[-1])))
        return -np.log(np.where(right, p, 1 - p)).sum() + (ridge * (weights - start) ** 2).sum() / 2

    best = np.array(sure.weights)
    for column in range(len(best)):
        for step in (-1e-3, 1e-3):
            assert loss(best + step * np.eye(len(best))[column]) > loss(best)


def test_too_little_teaches_nothing():
    signs, names, right, _ = world(50)
    assert fit_certainty(signs[right], [names[i] for i in np.flatnonzero(right)], right[right]) is None
    assert fit_certainty(signs[:0], [], right[:0]) is None


def test_a_review_of_the_doubtful_alone_does_not_spoil_the_sure():
    rng = np.random.default_rng(0)
    score = rng.uniform(-3, 4, 1500)
    signs = np.zeros((1500, len(SIGNS)))
    signs[:, 0] = score
    right = rng.random(1500) < 1 / (1 + np.exp(-score))
    head = np.argsort(score)[:200]
    rest = np.setdiff1d(np.arange(1500), head)
    nobody = [frozenset()] * 1500
    sure = fit_certainty(signs[head], nobody[:200], right[head], signs[rest])
    found = sure.probability(signs, nobody)
    assert np.abs(found - 1 / (1 + np.exp(-score)))[rest].mean() < 0.05


def test_the_score_for_a_precision_is_that_of_the_sorted_mean():
    rng = np.random.default_rng(1)
    chains = [((0, p), (1, min(p + 0.2, 1.0))) if i % 3 else ((0, p),) for i, p in enumerate(rng.random(500))]

    def mean(least):
        got = [next((s for _, s in chain if s >= least), None) for chain in chains]
        return np.mean([s for s in got if s is not None])

    for wanted in (0.6, 0.8, 0.95):
        least = score_for(wanted, chains)
        assert mean(least) >= wanted > mean(least - 2 / THRESHOLDS)
    assert score_for(0.5, []) == 0.0


def record(box, fused, region=0, box_score=0.9):
    ids, names, probs = (0, 1), ("cat", "dog"), (0.7, 0.2)
    told = ("ok", (0, 1), (-0.1, -2.4), 0.9, 0.8)  # status, order, log-probabilities, label mass, presence
    return RegionRecord("a", region, box, box_score, ids, names, probs, fused, *told)


def test_signs_by_hand():
    words = read_words(["cat", "dog"])
    whole, part = record((0, 0, 10, 10), (0.9, 0.05)), record((0, 0, 5, 10), (0.6, 0.3), 1)
    other = record((2, 0, 12, 10), (0.1, 0.8), 2)
    (first, big), (_, small), (label, last) = signs_of([whole, part, other], words)
    assert (first, label) == (0, 1)
    told = dict(zip(SIGNS, big, strict=True))
    assert told["score"] == pytest.approx(logit(0.9))
    assert told["margin"] == pytest.approx(logit(0.9 / 0.95))
    assert (told["presence"], told["box"], told["mass"]) == pytest.approx((logit(0.8), logit(0.9), logit(0.9)))
    assert told["retrieval"] == pytest.approx(logit(0.7))
    assert told["ranker"] == pytest.approx(logit(np.exp(-0.1)))
    assert told["ahead"] == pytest.approx(2.3)
    assert told["area"] == pytest.approx(np.log(100))
    assert big[-4:] == pytest.approx([0, 0, 0, 1.0])  # the surest; the small one lies in it
    assert small[-4:] == pytest.approx([0.5, 0.5, 1.0, 0.5])
    assert last[-4:] == pytest.approx([0, 80 / 120, 0.8, 0.8])


def test_with_a_certainty_the_score_is_the_probability_and_a_broader_class_is_the_way_out():
    words = read_words(["animal > cat", "animal > dog"])
    signs, names, right, _ = world(400, names=("cat", "dog", "animal"))
    sure = fit_certainty(signs, names, right)
    one = record((0, 0, 10, 10), (0.5, 0.4))
    (choice,) = choices([one], words, sure)
    assert [words.classes[row] for row, _ in choice.chain] == ["cat", "animal"]
    assert choice.doubt == pytest.approx(1 - choice.chain[0][1])
    (_, narrow), (_, broad) = choice.chain
    # Doubt is how likely the decision is wrong, also the one to write nothing.
    assert decide(choice, 0.0).doubt == pytest.approx(1 - narrow)
    assert decide(choice, 1.0).class_id is None
    assert decide(choice, 1.0).doubt == pytest.approx(narrow)
    if broad > narrow:
        assert decide(choice, (narrow + broad) / 2).doubt == pytest.approx(1 - broad)
    assert choice.chain[0][1] == pytest.approx(
        sure.probability(next(iter(signs_of([one], words)))[1][None], [words_of("cat")])[0]
    )
