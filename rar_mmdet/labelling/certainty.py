"""How likely a label is right, learned from regions that a person looked at.

A logistic regression on what a record says of its label: scores of both stages, how far ahead the label is, whether
anything is there, how the box lies to the others of its photo, and the words of the label, for some names are confused
more than others. It starts from the label's score as it is, so that few reviewed regions move it a little and many a
lot. Fit by Newton's method with a ridge; ours, measured in docs/labelling.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.files.names import cleaned

__all__ = ["SIGNS", "Certainty", "fit_certainty", "logit", "words_of"]

FloatArray = NDArray[np.float64]

# What is known of a label.
SIGNS = (
    # Log-odds:
    "score",  # of the label, fused
    "margin",  # its score's share of its own and the next one's
    "presence",  # that any of the candidates is right, as the ranker sees it
    "box",  # the detector's score
    "retrieval",  # retrieval's probability of the label
    "ranker",  # the ranker's, among the candidates
    "mass",  # of its probability that the ranker gave to any candidate
    # Others:
    "ahead",  # log-probability by which the ranker's first is ahead of its second
    "area",  # log of the box's, square pixels
    # How the box lies to the others of its photo, each from 0 to 1, the largest:
    "same",  # IoU with a surer box of the same label: it may be there twice
    "overlap",  # IoU with a surer box of any label
    "inside",  # its part that lies in a surer box: it may be a part of an object
    "holds",  # part of another box that lies in it: it may be several objects
)
TINY = 1e-6  # probabilities are kept this far from 0 and 1
RIDGE = 1.0  # on each sign, in standard deviations
WORD_RIDGE = 30.0  # on each word of names; on the demo 3 to 100 order labels equally well
LEAST_OF_A_WORD = 10  # reviewed labels with a word, below which it says nothing
LEAST = 5  # right ones, and wrong ones, that a fit needs
ANCHOR = 100.0  # reviewed labels that all unreviewed ones together weigh (ours)
STEPS = 100


def logit(probability: FloatArray | float) -> Any:
    """log p / (1 - p), finite."""
    p = np.clip(probability, TINY, 1 - TINY)
    return np.log(p / (1 - p))


def words_of(name: str) -> frozenset[str]:
    """The words of a class's name."""
    return frozenset(cleaned(name).casefold().split())


@dataclass(frozen=True)
class Certainty:
    """The fitted regression."""

    words: tuple[str, ...]  # V that have a weight of their own
    centre: tuple[float, ...]  # (13 + V,) means of the reviewed labels
    spread: tuple[float, ...]  # (13 + V,) their standard deviations
    weights: tuple[float, ...]  # (13 + V + 1,) on what is standardised, the constant last
    reviewed: int  # labels it was fitted on
    right: int  # how many of them were right

    def probability(self, signs: FloatArray, names: Sequence[frozenset[str]]) -> FloatArray:
        """(R,) that each label is right.

        Args:
            signs: (R, 13), as `SIGNS` has them.
            names: R times the words of the label's name.
        """
        rows = (_with_words(signs, names, self.words) - np.array(self.centre)) / np.array(self.spread)
        weights = np.array(self.weights)
        return _sigmoid(rows @ weights[:-1] + weights[-1])


def fit_certainty(
    signs: FloatArray,
    names: Sequence[frozenset[str]],
    right: NDArray[np.bool_],
    others: FloatArray | None = None,
) -> Certainty | None:
    """Learn from R reviewed labels; nothing where too few of them were right, or wrong.

    Args:
        signs: (R, 13), as `SIGNS` has them.
        names: R times the words of the label's name.
        right: (R,) whether the person kept the label.
        others: (U, 13) signs of labels that nobody looked at. People look at the doubtful ones first, which say little
            of the others: these are taken to be right as often as their scores say, all together with the weight of
            `ANCHOR` reviewed ones.
    """
    good = int(right.sum())
    if good < LEAST or len(right) - good < LEAST:
        return None
    counts = Counter(word for own in names for word in own)
    words = tuple(sorted(w for w, count in counts.items() if LEAST_OF_A_WORD <= count <= len(right) - LEAST_OF_A_WORD))
    rows = _with_words(signs, names, words)
    centre, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread < 1e-9] = 1.0  # the same for all: no say
    rows = np.concatenate([(rows - centre) / spread, np.ones((len(rows), 1))], axis=1)
    target, weight = right.astype(float), np.ones(len(rows))
    if others is not None and len(others):
        more = (_with_words(others, [frozenset()] * len(others), words) - centre) / spread
        more[:, len(SIGNS) :] = 0.0  # as often as among the reviewed
        rows = np.concatenate([rows, np.concatenate([more, np.ones((len(more), 1))], axis=1)])
        target = np.concatenate([target, _sigmoid(others[:, 0])])
        weight = np.concatenate([weight, np.full(len(others), ANCHOR / len(others))])
    ridge = np.array([RIDGE] * len(SIGNS) + [WORD_RIDGE] * len(words) + [RIDGE])
    start = np.zeros(rows.shape[1])  # where the probability is the score itself
    start[0], start[-1] = spread[0], centre[0]
    weights = start.copy()
    for _ in range(STEPS):  # Newton's method; the loss is convex
        p = _sigmoid(rows @ weights)
        slope = rows.T @ (weight * (p - target)) + ridge * (weights - start)
        step = np.linalg.solve((rows * (weight * p * (1 - p))[:, None]).T @ rows + np.diag(ridge), slope)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    return Certainty(words, tuple(centre.tolist()), tuple(spread.tolist()), tuple(weights.tolist()), len(right), good)


def _with_words(signs: FloatArray, names: Sequence[frozenset[str]], words: Sequence[str]) -> FloatArray:
    said = np.array([[word in own for word in words] for own in names], float).reshape(len(names), len(words))
    return np.concatenate([np.asarray(signs, float).reshape(-1, len(SIGNS)), said], axis=1)


def _sigmoid(values: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))
