"""What becomes of found names: from guesses and vectors of discovery photos to something that recognises photos.

Each way gives names, and a shortlister over them that a ranker can be put on. None sees a label or a test photo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rar_mmdet.errors import FewShotError
from rar_mmdet.memory.base import Shortlister
from rar_mmdet.memory.classifiers import LinearClassifier, NearestImages, image_text_classifier, text_classifier
from rar_mmdet.memory.few_shot import TEXT_SCALE, nearest_labels
from rar_mmdet.structures import Shortlist

__all__ = ["ALPHA", "POOLED_NAMES", "POOLED_PHOTOS", "WAYS", "Known", "NamedClassifier", "pooled_names"]

ALPHA = 0.7  # FineR's share of the text (its command line; the function's own default is 0.5)
# RAR's release pools the first POOLED_NAMES guesses of the POOLED_PHOTOS nearest photos. It chose both for each set on
# the test metric; here they are what a photo and a class have: three and three.
POOLED_PHOTOS, POOLED_NAMES = 3, 3


@dataclass(frozen=True)
class Known:
    """What a way is made from: the vocabulary, and N discovery photos."""

    names: tuple[str, ...]  # C
    text: Tensor  # (D, C) unit columns, by the templates
    photos: Tensor  # (N, D) unit vectors
    guesses: tuple[tuple[int, ...], ...]  # N rows of places in `names`, best first; may be empty
    # For FineR's classifier alone; made when asked for.
    bare_text: Callable[[], Tensor]  # (D, C) unit columns of the names without a template
    votes: Callable[[], Tensor]  # (N, C) similarities by which a photo votes for a name
    views: Callable[[], Tensor]  # (N, V, D) unit vectors of views, a plain one among them


@dataclass(frozen=True)
class NamedClassifier:
    """Names, and what finds them."""

    names: tuple[str, ...]
    shortlister: Shortlister


def text_way(known: Known) -> NamedClassifier:
    """Zero-shot over all found names; no exemplars."""
    return NamedClassifier(known.names, text_classifier(known.text))


def finer_way(known: Known, pool: Sequence[int] | None = None) -> NamedClassifier:
    """FineR: each photo votes for one name, others are dropped; a name's vector is 0.7 text + 0.3 image.

    The image part is the mean over all views of the photos that voted for it. Neither it nor the mixture is brought
    back to unit length, as in FineR's code (grouping.py, `generate_voted_classifier`).

    Args:
        known: all there is.
        pool: places of the names that can be voted for; `None`: all.
    """
    chosen = list(range(len(known.names))) if pool is None else list(pool)
    votes = torch.tensor(chosen)[known.votes()[:, chosen].argmax(dim=1)]
    kept = sorted(set(votes.tolist()))
    text, views = known.bare_text(), known.views()
    columns = [ALPHA * text[:, name] + (1 - ALPHA) * views[votes == name].flatten(0, 1).mean(dim=0) for name in kept]
    weight = TEXT_SCALE * torch.stack(columns, dim=1)
    names = tuple(known.names[name] for name in kept)
    return NamedClassifier(names, LinearClassifier(weight, weight.new_zeros(len(kept))))


def pooled_names(
    photos: Tensor, guesses: Sequence[Sequence[int]], nearest: int = POOLED_PHOTOS, first: int = POOLED_NAMES
) -> list[int]:
    """RAR's release: every discovery photo asks the index of all of them, itself included; the `first` guesses of its
    `nearest` photos are pooled.

    As each photo is its own nearest, the pool is the `first` guesses of all photos, whatever `nearest` is: the second
    knob chooses nothing. (In the release photos and guesses are paired through a list sorted by true class, and fit by
    class alone; that is where its published values of that knob can have differed.)

    Returns:
        Places of the pooled names, sorted.
    """
    near = nearest_labels(photos, photos, torch.arange(len(photos)), nearest)
    return sorted({name for row in near.tolist() for photo in row for name in guesses[photo][:first]})


def released_way(known: Known) -> NamedClassifier:
    """RAR as released: names pooled by neighbours, then FineR's classifier. No language model is asked."""
    return finer_way(known, pooled_names(known.photos, known.guesses))


@dataclass(frozen=True)
class NearestGuesses:
    """The distinct guesses of the nearest discovery photos, nearest first; of one photo's guesses the best first.

    Probabilities are a softmax over all names, a name being as near as its nearest photo.
    """

    photos: Tensor  # (N, D) unit vectors
    guesses: tuple[tuple[int, ...], ...]
    num_names: int

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` nearest names of each of (Q, D) unit vectors, fewer if there are fewer.

        Raises:
            FewShotError: no photo has a guess, or anything that `NearestImages` refuses.
        """
        pairs = [(photo, name) for photo, row in enumerate(self.guesses) for name in row]
        if not pairs:
            raise FewShotError("no discovery photo has a guess that stayed in the vocabulary; lower --min-support")
        rows, labels = torch.tensor(pairs).T
        exemplars = self.photos[rows]
        known = len(set(labels.tolist()))
        probs = NearestImages(exemplars, labels, self.num_names).search(queries, self.num_names)
        by_name = torch.zeros_like(probs.probs).scatter_(1, probs.category_ids, probs.probs)
        # Names of one photo are equally near; `nearest_labels` keeps the order of the guesses.
        ordered = nearest_labels(queries, exemplars, labels, len(labels)).tolist()
        ids = torch.tensor([list(dict.fromkeys(row))[: min(depth, known)] for row in ordered])
        ids = ids.reshape(len(queries), -1)
        return Shortlist(ids, by_name.gather(1, ids).cummin(dim=1).values)


def paper_way(known: Known) -> NamedClassifier:
    """What the paper's text describes: retrieve among photos labelled by guesses, with the test photo as the query."""
    return NamedClassifier(known.names, NearestGuesses(known.photos, known.guesses, len(known.names)))


def ours_way(known: Known) -> NamedClassifier:
    """Ours: each photo votes for its best guess that stayed, names without a vote go; text and exemplars half and half.

    A photo without such a guess votes by the encoder's text.
    """
    by_text = (known.photos @ known.text).argmax(dim=1).tolist()
    votes = [row[0] if row else near for row, near in zip(known.guesses, by_text, strict=True)]
    kept = sorted(set(votes))
    place = {name: i for i, name in enumerate(kept)}
    labels = torch.tensor([place[vote] for vote in votes])
    names = tuple(known.names[name] for name in kept)
    return NamedClassifier(names, image_text_classifier(known.text[:, kept], known.photos, labels))


# Row -> how it is made.
WAYS: dict[str, Callable[[Known], NamedClassifier]] = {
    "text": text_way,
    "finer": finer_way,
    "released": released_way,
    "paper": paper_way,
    "ours": ours_way,
}
