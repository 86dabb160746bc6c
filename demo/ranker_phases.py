"""What the demo ranker is asked while its language model learns, and in which order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of stage 3: learning rate, shares of the questions and of the kinds of lists."""

    steps: int
    lr: float
    questions: dict[str, float]
    retrieved: float  # share of lists that are the retriever's own; the rest is split between the other two kinds
    leak_free: float
    five: float  # share of lists of exactly five names
    large_batch: tuple[str, ...]  # short questions, asked 128 at a time instead of 64
    names_first: float = 0.0  # share of the steps, at the start, that only ask for the name


def make_phases(args: argparse.Namespace) -> tuple[Phase, Phase]:
    """First everything at once, then mostly letters, which the first phase leaves behind.

    An answer by letter takes two steps, what it is and where that is in the list. With one such question in eight and
    only look-alikes in the lists it had not begun to form after 2,400 steps; unrelated names make the start easier.
    """
    every = {"name": 0.30, "choose": 0.12, "sort": 0.18, "paper": 0.10, "paper_in_context": 0.08, "letter": 0.12}
    letters = {"name": 0.15, "choose": 0.06, "sort": 0.10, "paper": 0.06, "paper_in_context": 0.05, "letter": 0.46}
    short = ("name", "yesno", "letter")
    return (
        Phase(args.language_steps, 2e-3, {**every, "yesno": 0.10}, 0.5, 0.5, 0.6, ("name", "yesno"), 0.08),
        Phase(args.letter_steps, 1.5e-3, {**letters, "yesno": 0.12}, 0.4, 0.2, 0.3, short),
    )


def locate(phases: Sequence[Phase], step: int) -> tuple[Phase, int]:
    """The phase that a step of the whole stage falls into, and the step within it."""
    for phase in phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(f"step lies {step} after the last phase")
