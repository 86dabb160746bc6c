"""One class from the scores of phrases, by hand."""

from dataclasses import replace

import pytest

from rar_mmdet.labelling.decisions import choices, decide
from rar_mmdet.labelling.words import read_words
from rar_mmdet.records import RegionRecord

WORDS = read_words(["cat | kitten", "dog > poodle", "dog > boxer", "! shadow"])
CAT, DOG, POODLE, BOXER = (WORDS.classes.index(name) for name in ("cat", "dog", "poodle", "boxer"))


def region(fused, order=()):
    """Scores by phrase; retrieval has the order they are given in."""
    ids = tuple(WORDS.phrases.index(phrase) for phrase in fused)
    scores = tuple(fused.values())
    status = "ok" if order else "skipped"
    return RegionRecord("a", 0, (0, 0, 9, 9), 1.0, ids, tuple(fused), scores, scores, status, tuple(order))


def decided(record, min_score=0.5):
    (choice,) = choices([record], WORDS)
    return decide(choice, min_score)


@pytest.mark.parametrize(
    ("fused", "expected", "score"),
    [
        ({"cat": 0.3, "kitten": 0.3, "poodle": 0.4}, CAT, 0.6),  # phrases of one class add up
        ({"poodle": 0.6, "cat": 0.3}, POODLE, 0.6),
        ({"poodle": 0.4, "boxer": 0.3, "cat": 0.2}, DOG, 0.7),  # the breed is unsure
        ({"poodle": 0.3, "boxer": 0.1, "cat": 0.2}, None, 0.3),  # so is the animal
        ({"shadow": 0.5, "poodle": 0.4, "boxer": 0.1}, None, 0.4),  # competes, and wins
        ({"shadow": 0.3, "poodle": 0.4, "boxer": 0.3}, DOG, 0.7),
        ({"cat": 0.9, "kitten": 0.9}, CAT, 1.0),
        ({"shadow": 1.0}, None, 0.0),
    ],
)
def test_by_hand(fused, expected, score):
    found = decided(region(fused))
    assert found.class_id == expected
    assert found.score == pytest.approx(score)


def test_everything_has_a_label_at_zero():
    assert decided(region({"poodle": 0.01}), 0.0).class_id == POODLE


def test_doubt_is_the_margin_and_more_where_the_stages_differ():
    sure, unsure = region({"cat": 0.9, "poodle": 0.1}), region({"cat": 0.5, "poodle": 0.45})
    values = [decided(one).doubt for one in (sure, unsure)]
    assert values == pytest.approx([0.18, 0.855])
    agreed = region({"cat": 0.9, "poodle": 0.1}, order=(0, 1))
    assert decided(agreed).doubt == pytest.approx(0.18)
    # Retrieval had the poodle first, the ranker made it a cat.
    differ = region({"poodle": 0.1, "cat": 0.9}, order=(1, 0))
    assert decided(differ).doubt == pytest.approx(0.28)
    found = replace(sure, box_score=0.5)
    assert decided(found).doubt == pytest.approx(1 - 0.82 / 2)
    nothing = region({"shadow": 1.0})
    assert decided(nothing).doubt == 1.0
