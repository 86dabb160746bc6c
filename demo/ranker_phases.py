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
    crops: int  # of the pool, those that are drawn from
    names_first: float = 0.0  # share of the steps, at the start, that only ask for the name


def make_phases(args: argparse.Namespace) -> tuple[Phase, ...]:
    """First everything at once, then mostly letters, which the first phase leaves behind, then both short answers.

    An answer by letter takes two steps, what it is and where that is in the list. With one such question in eight and
    only look-alikes in the lists it had not begun to form after 2,400 steps; unrelated names make the start easier.
    After the second phase letters were still rising when its learning rate ran out, and yes or no, an eighth of its
    questions, was right about unrelated names only: the third gives them the rate and the share to learn. By then each
    of a third of the crops has been seen forty times: the last has all of them, and mostly the retriever's own lists,
    long enough for letters to rank as well as text.
    """
    every = {"name": 0.30, "choose": 0.12, "sort": 0.18, "paper": 0.10, "paper_in_context": 0.08, "letter": 0.12}
    letters = {"name": 0.15, "choose": 0.06, "sort": 0.10, "paper": 0.06, "paper_in_context": 0.05, "letter": 0.46}
    both = {"name": 0.08, "choose": 0.05, "sort": 0.06, "paper": 0.04, "paper_in_context": 0.04, "letter": 0.40}
    last = {"name": 0.05, "choose": 0.05, "sort": 0.06, "paper": 0.07, "paper_in_context": 0.06, "letter": 0.56}
    short, some = ("name", "yesno", "letter"), args.language_renders // 3
    return (
        Phase(args.language_steps, 2e-3, {**every, "yesno": 0.10}, 0.5, 0.5, 0.6, ("name", "yesno"), some, 0.08),
        Phase(args.letter_steps, 1.5e-3, {**letters, "yesno": 0.12}, 0.4, 0.2, 0.3, short, some),
        Phase(args.short_answer_steps, 2e-3, {**both, "yesno": 0.33}, 0.5, 0.25, 0.5, short, some),
        Phase(args.last_steps, 1.5e-3, {**last, "yesno": 0.15}, 0.7, 0.2, 0.6, short, args.language_renders),
    )


def locate(phases: Sequence[Phase], step: int) -> tuple[Phase, int]:
    """The phase that a step of the whole stage falls into, and the step within it."""
    for phase in phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(f"step lies {step} after the last phase")
