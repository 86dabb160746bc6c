"""Questions whose answer is known: a photo, names to tell apart, the right one. From stored vectors, streaming.

Modes, by name:

- `released`: what RAR's notebook makes (finetune/build_finetuning_data.ipynb): all photos are memory and queries at
  once, so that each is its own first neighbour; the 16 windows of 5 consecutive neighbours of 20 that hold the true
  name, in that order; the answer is the true name first, then the rest as they are. A model that copies the order of
  the question is right in the first window of every photo.
- `paper`: what section 3.3 says: two disjoint halves, neighbours of one in the other; the windows that hold the true
  class, each name once, shuffled; the answer is the order of similarity.
- `ours`: neighbours among other photos; k names at random from 3 to 10, hard ones by image and by text, each once,
  shuffled; the answer begins with the true name; in a share of questions it is "none of these".
- `names`: one question a photo, the true name among random ones; for a way to ask that shows no names, which makes a
  classifier of the model (the baseline "LLaVA1.5 Finetuning" of the paper's Tables 2 and 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.errors import FewShotError

__all__ = [
    "MODES",
    "NONE_OF_THESE",
    "RankingExample",
    "halves",
    "make_examples",
    "name_examples",
    "our_examples",
    "paper_examples",
    "released_examples",
]

MODES = ("ours", "paper", "released", "names")
NONE_OF_THESE = -1  # label of the answer that no name is right
NEIGHBOURS, WINDOW = 20, 5  # the paper's section 4.1, and the notebook: 16 windows of 5
FEWEST, MOST = 3, 10  # names of a question in `ours`
PER_PHOTO = 9  # questions a photo in `ours`: as many as the release makes of one, 30,647 of 3,334
NONE_SHARE = 0.1  # of the questions of `ours` that have "none of these" as the answer, and as many as a wrong one
HARD = 20  # nearest classes that the wrong names of `ours` are drawn from, by image and by text each
SIMILARITIES = 1 << 25  # of a block of queries, held at once


@dataclass(frozen=True)
class RankingExample:
    """One question; way to ask and wording come later."""

    photo: int  # row of the query
    labels: tuple[int, ...]  # names in the order they are shown; NONE_OF_THESE may be one
    truth: int  # place of the right one
    target: tuple[int, ...]  # places in the order of the answer
    similarities: tuple[float, ...]  # cosine of the nearest memory photo of each name; 0 for NONE_OF_THESE

    @property
    def copied_is_right(self) -> bool:
        """Whether a model that repeats the order of the question is right."""
        return self.truth == 0


def released_examples(
    vectors: Tensor, labels: Tensor, *, neighbours: int = NEIGHBOURS, window: int = WINDOW
) -> Iterator[RankingExample]:
    """See the module: mode `released`. Names repeat, as in the release.

    Args:
        vectors: (N, D) unit vectors of the photos.
        labels: (N,) int64.
        neighbours: of each photo, itself among them.
        window: consecutive neighbours of one question.
    """
    _check(vectors, labels)
    for rows, similarity in _similar(vectors, vectors):
        best = similarity.topk(min(neighbours, len(vectors)), dim=1)
        for photo, found, values in zip(rows, labels[best.indices].tolist(), best.values.tolist(), strict=True):
            truth = int(labels[photo])
            for start in range(len(found) - window + 1):
                shown = found[start : start + window]
                if truth in shown:
                    right = [place for place, label in enumerate(shown) if label == truth]
                    target = (*right, *(place for place in range(window) if place not in right))
                    near = tuple(values[start : start + window])
                    yield RankingExample(photo, tuple(shown), right[0], target, near)


def paper_examples(
    vectors: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    neighbours: int = NEIGHBOURS,
    window: int = WINDOW,
) -> Iterator[RankingExample]:
    """See the module: mode `paper`. A name that repeats within a window is shown once.

    Args:
        vectors: (N, D) unit vectors of the photos.
        labels: (N,) int64.
        seed: of the halves and of the orders.
        groups: N names of photos, where rows are regions of them: a photo is then in one half alone.
        neighbours: of each query in the other half.
        window: consecutive neighbours of one question.
    """
    _check(vectors, labels)
    memory, queries = halves(labels, seed, groups)
    for rows, similarity in _similar(vectors[queries], vectors[memory]):
        best = similarity.topk(min(neighbours, len(memory)), dim=1)
        known = labels[memory][best.indices].tolist()
        for row, found, values in zip(rows, known, best.values.tolist(), strict=True):
            photo = int(queries[row])
            truth, rng = int(labels[photo]), np.random.default_rng([seed, photo])
            for start in range(len(found) - window + 1):
                near: dict[int, float] = {}
                for place in range(start, start + window):
                    near.setdefault(found[place], values[place])
                if truth in near and len(near) > 1:
                    yield _shuffled(photo, list(near), list(near.values()), list(near), truth, rng)


def our_examples(
    vectors: Tensor,
    labels: Tensor,
    text: Tensor,
    *,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    per_photo: int = PER_PHOTO,
    none_share: float = NONE_SHARE,
) -> Iterator[RankingExample]:
    """See the module: mode `ours`.

    Args:
        vectors: (N, D) unit vectors of the photos, or of regions of photos.
        labels: (N,) int64.
        text: (D, C) unit columns of the names.
        seed: of the names and of the orders. A photo's questions depend on it and on nothing else.
        groups: N names of photos; rows of one photo are never neighbours of each other. `None`: each is its own.
        per_photo: questions of each row.
        none_share: share of the questions that have "none of these" as the answer, and as many as a wrong one.

    Raises:
        FewShotError: shapes that do not fit, or fewer than 3 classes.
    """
    _check(vectors, labels)
    classes = text.shape[1]
    if classes < FEWEST or int(labels.max()) >= classes:
        raise FewShotError(
            f"our_examples needs at least {FEWEST} classes and a name for each label, got {classes} names"
        )
    own = np.arange(len(vectors)) if groups is None else np.unique(np.array(groups), return_inverse=True)[1]
    group = torch.from_numpy(own.astype(np.int64))
    like = (text.T @ text).fill_diagonal_(-2)
    by_text = like.topk(min(HARD, classes - 1), dim=1).indices.tolist()
    for rows, similarity in _similar(vectors, vectors):
        similarity[group[rows][:, None] == group[None, :]] = -torch.inf
        near = similarity.new_full((len(rows), classes), -torch.inf)
        near.scatter_reduce_(1, labels.expand(len(rows), -1), similarity, "amax")
        hard = near.topk(min(HARD + 1, classes), dim=1).indices.tolist()
        for photo, by_image, closeness in zip(rows, hard, near.tolist(), strict=True):
            truth = int(labels[photo])
            pool = list(dict.fromkeys(c for c in (*by_image, *by_text[truth]) if c != truth))
            rng = np.random.default_rng([seed, photo])
            for _ in range(per_photo):
                yield _ours(photo, truth, pool, closeness, none_share, rng)


def _ours(
    photo: int, truth: int, pool: list[int], closeness: list[float], none_share: float, rng: np.random.Generator
) -> RankingExample:
    count = int(rng.integers(FEWEST, MOST + 1))
    chance = rng.uniform()
    has_none, is_none = chance < 2 * none_share, chance < none_share
    wrong = rng.choice(pool, size=min(count - 1, len(pool)), replace=False).tolist()
    if is_none:
        names = [*wrong, NONE_OF_THESE]
    else:
        names = [truth, *wrong[: len(wrong) - has_none], *([NONE_OF_THESE] if has_none else [])]
    right = NONE_OF_THESE if is_none else truth
    near = [0.0 if label == NONE_OF_THESE else max(closeness[label], -1.0) for label in names]
    behind = [label for _, label in sorted(zip(near, names, strict=True), key=lambda pair: -pair[0]) if label != right]
    # "None of these" as a wrong answer comes last.
    behind = [*(label for label in behind if label != NONE_OF_THESE), *(n for n in behind if n == NONE_OF_THESE)]
    return _shuffled(photo, names, near, [right, *behind], right, rng)


def _shuffled(
    photo: int, names: list[int], near: list[float], answer: list[int], truth: int, rng: np.random.Generator
) -> RankingExample:
    """The names in an order that says nothing about the answer."""
    order = rng.permutation(len(names)).tolist()
    shown = [names[place] for place in order]
    return RankingExample(
        photo,
        tuple(shown),
        shown.index(truth),
        tuple(shown.index(label) for label in answer),
        tuple(near[place] for place in order),
    )


def name_examples(labels: Tensor, classes: int, *, seed: int = 0) -> Iterator[RankingExample]:
    """See the module: mode `names`.

    Args:
        labels: (N,) int64.
        classes: C; up to `MOST` of them are in a question.
        seed: of the names and of the orders.
    """
    for photo, truth in enumerate(labels.tolist()):
        rng = np.random.default_rng([seed, photo])
        others = np.setdiff1d(np.arange(classes), [truth])
        wrong = rng.choice(others, size=min(MOST - 1, len(others)), replace=False).tolist()
        names = [truth, *wrong]
        yield _shuffled(photo, names, [0.0] * len(names), names, truth, rng)


def halves(labels: Tensor, seed: int, groups: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Rows of two disjoint halves, each with half of every class; of an odd one out the memory has it.

    With groups, whole groups are drawn, and classes are as even as chance makes them.
    """
    rng = np.random.default_rng(seed)
    if groups is not None:
        unique, own = np.unique(np.array(groups), return_inverse=True)
        is_query = np.isin(own, rng.permutation(len(unique))[(len(unique) + 1) // 2 :])
        return torch.from_numpy(np.flatnonzero(~is_query)), torch.from_numpy(np.flatnonzero(is_query))
    memory: list[int] = []
    queries: list[int] = []
    for label in labels.unique().tolist():
        rows = rng.permutation((labels == label).nonzero()[:, 0].numpy())
        memory += rows[: (len(rows) + 1) // 2].tolist()
        queries += rows[(len(rows) + 1) // 2 :].tolist()
    return torch.tensor(sorted(memory)), torch.tensor(sorted(queries), dtype=torch.int64)


def _similar(queries: Tensor, memory: Tensor) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of some queries, and their cosines with all of the memory, a block at a time."""
    step = max(1, SIMILARITIES // max(1, len(memory)))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        yield list(range(start, start + len(block))), block @ memory.T


def _check(vectors: Tensor, labels: Tensor) -> None:
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1] or not len(labels):
        raise FewShotError(
            f"ranking examples are made of (N, D) vectors and (N,) labels, got {tuple(vectors.shape)} and "
            f"{tuple(labels.shape)}"
        )


def make_examples(
    mode: str, vectors: Tensor, labels: Tensor, text: Tensor, *, seed: int = 0, groups: Sequence[str] | None = None
) -> Iterator[RankingExample]:
    """The examples of a mode by name.

    Raises:
        FewShotError: there is no such mode, or the vectors do not fit.
    """
    if mode not in MODES:
        raise FewShotError(f"there is no mode {mode!r}; known are {', '.join(MODES)}")
    if mode == "names":
        return name_examples(labels, text.shape[1], seed=seed)
    if mode == "ours":
        return our_examples(vectors, labels, text, seed=seed, groups=groups)
    return (
        paper_examples(vectors, labels, seed=seed, groups=groups)
        if mode == "paper"
        else released_examples(vectors, labels)
    )
