"""Every training-free way from stored vectors to a shortlist, behind one `search`: what a ranker can be put on.

Queries (Q, D) go in, the most probable classes of each come out: the `Shortlister` of `rar_mmdet.memory.base`. Logits
are 100 x cosine, as OpenAI's CLIP has them, and probabilities their softmax over all classes. Vectors are encoded once
and shared. A class without exemplars has probability 0 where exemplars are all there is.

Zero-shot text, class means, text and images mixed, and GDA are all x·W + b: one class, four ways to make it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rar_mmdet.errors import FewShotError, MemoryMismatchError
from rar_mmdet.files.vocabulary import check_same_vocabulary
from rar_mmdet.memory.base import EntryEncoder, Shortlister
from rar_mmdet.memory.few_shot import TEXT_SCALE, GaussianClassifier, equal_counts, tip_logits
from rar_mmdet.structures import Shortlist

__all__ = [
    "LinearClassifier",
    "NearestImages",
    "ReadyMemory",
    "TipAdapter",
    "class_mean_classifier",
    "gda_classifier",
    "image_text_classifier",
    "text_classifier",
]

BLOCK_ROWS = 1024  # queries whose logits are in memory at a time (ours)


@dataclass(frozen=True)
class LinearClassifier:
    """Logits x·weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,); -inf: never

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:]:
            raise FewShotError(
                f"LinearClassifier: weight must be (D, C) and bias (C,), got {tuple(self.weight.shape)} and "
                f"{tuple(self.bias.shape)}"
            )

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable classes of each of (Q, D) unit vectors, fewer if there are fewer.

        Raises:
            FewShotError: `depth` is not at least 1, or the queries have another length.
        """
        return _best(queries, depth, len(self.weight), lambda block: block @ self.weight + self.bias)


def text_classifier(text_weights: Tensor) -> LinearClassifier:
    """Zero-shot, 100 x·T, of (D, C) unit columns. Uses no exemplars."""
    return LinearClassifier(TEXT_SCALE * text_weights, text_weights.new_zeros(text_weights.shape[1]))


def class_mean_classifier(exemplars: Tensor, labels: Tensor, num_classes: int) -> LinearClassifier:
    """100 x·m_c, m_c being the unit vector of the mean of a class's exemplars.

    Args:
        exemplars: (N, D) unit vectors.
        labels: (N,) int64 in [0, C).
        num_classes: C.
    """
    means, counts = _class_means(exemplars, labels, num_classes)
    bias = means.new_zeros(num_classes).masked_fill_(counts == 0, -torch.inf)
    return LinearClassifier(TEXT_SCALE * means.T, bias)


def image_text_classifier(
    text_weights: Tensor, exemplars: Tensor, labels: Tensor, share: float = 0.5
) -> LinearClassifier:
    """Class means and text mixed: 100 x·(share m_c + (1 - share) t_c); without exemplars a class has its text alone.

    Args:
        text_weights: (D, C) unit columns.
        exemplars: (N, D) unit vectors.
        labels: (N,) int64 in [0, C).
        share: of the images, 0 (text) to 1 (images); even by default (ours).

    Raises:
        FewShotError: `share` is outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise FewShotError(f"image_text_classifier: share={share!r} must be between 0 (text) and 1 (images)")
    means, counts = _class_means(exemplars, labels, text_weights.shape[1])
    own_share = torch.where(counts > 0, share, 0.0).to(means)
    return text_classifier(own_share * means.T + (1 - own_share) * text_weights)


def gda_classifier(text_weights: Tensor, gda: GaussianClassifier, alpha: float) -> LinearClassifier:
    """100 x·T + alpha (x·W + b); see `gda_logits`.

    Args:
        text_weights: (D, C) unit columns.
        gda: of `fit_gda`, for the same classes.
        alpha: weight of the exemplars, >= 0. There is no value that suits all data: |W| grows as exemplars get alike.
            Its authors choose among seven decades on the val part: `tune_gda`. Never choose it on the test part.

    Raises:
        FewShotError: the classifier is for other classes or channels, or `alpha` is no number >= 0.
    """
    if gda.weight.shape != text_weights.shape:
        raise FewShotError(
            f"gda_classifier: GDA is (D, C) = {tuple(gda.weight.shape)}, the text {tuple(text_weights.shape)}; fit it "
            "on exemplars of the same classes and encoder"
        )
    if not 0 <= alpha < float("inf"):
        raise FewShotError(f"gda_classifier: alpha={alpha!r} must be a finite number >= 0")
    return LinearClassifier(TEXT_SCALE * text_weights + alpha * gda.weight, alpha * gda.bias)


@dataclass(frozen=True)
class NearestImages:
    """1-NN over images (the paper's CLIP+KNN), classes told apart: a class is as near as its nearest exemplar.

    The released list holds the labels of images and may repeat them, see `nearest_labels`; its first entry is the same.
    """

    exemplars: Tensor  # (N, D) unit vectors
    labels: Tensor  # (N,) int64 in [0, C)
    num_classes: int
    scale: float = TEXT_SCALE  # of cosines, 1 / τ of the encoder

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable classes of each of (Q, D) unit vectors, fewer if there are fewer.

        Raises:
            FewShotError: `depth` is not at least 1, or the queries have another length.
        """
        groups = equal_counts(self.labels, self.num_classes)
        ordered = torch.cat([self.exemplars[rows.flatten()] for _, rows in groups]).T.contiguous()

        def logits(block: Tensor) -> Tensor:
            near = block.new_full((len(block), self.num_classes), -torch.inf)
            similarity, start = self.scale * (block @ ordered), 0
            for classes, rows in groups:
                own = similarity[:, start : start + rows.numel()].view(-1, *rows.shape)
                near[:, classes] = own.amax(dim=1)
                start += rows.numel()
            return near

        return _best(queries, depth, self.exemplars.shape[1], logits)


@dataclass(frozen=True)
class TipAdapter:
    """Tip-Adapter without training, at one α and β for every set.

    1 and 5.5 are in common use; the release's configs start their search at 1.17 and 1 and keep what it finds.
    `tune_tip` searches on a val part.
    """

    text_weights: Tensor  # (D, C) unit columns
    keys: Tensor  # (N, D), of `tip_keys`
    labels: Tensor  # (N,) int64 in [0, C)
    alpha: float = 1.0
    beta: float = 5.5

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable classes of each of (Q, D) unit vectors, fewer if there are fewer.

        Raises:
            FewShotError: `depth` is not at least 1, or anything that `tip_logits` refuses.
        """

        def logits(block: Tensor) -> Tensor:
            return tip_logits(block, self.keys, self.labels, self.text_weights, self.alpha, self.beta)

        return _best(queries, depth, len(self.text_weights), logits)


@dataclass(frozen=True)
class ReadyMemory:
    """Any of these, or a shortlister of your own, as the `memory` of a `RegionRecognizer`: it can then be ranked."""

    shortlister: Shortlister
    encoder_fingerprint: str  # of the encoder that made its vectors
    category_names: tuple[str, ...]  # C names, in label order

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> Shortlister:
        """The shortlister, once it is known to be of this encoder and of these names, however they are spelt.

        Raises:
            MemoryMismatchError: it is of others; the message says of which.
        """
        if encoder.fingerprint != self.encoder_fingerprint:
            raise MemoryMismatchError(
                f"the vectors are of encoder {self.encoder_fingerprint}, the recogniser has {encoder.fingerprint}; "
                "encode exemplars and names again with the recogniser's encoder"
            )
        check_same_vocabulary(
            self.category_names,
            category_names,
            names_of="this memory",
            classes_of="the recogniser",
            advice="Give the recogniser the memory's names",
            error=MemoryMismatchError,
        )
        return self.shortlister


def _best(queries: Tensor, depth: int, channels: int, logits_of: Callable[[Tensor], Tensor]) -> Shortlist:
    """The best classes by their logits; equal ones in label order."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise FewShotError(f"search: depth={depth!r} must be a whole number of at least 1")
    if queries.ndim != 2 or queries.shape[1] != channels:
        raise FewShotError(f"search: queries must be (Q, {channels}), got {tuple(queries.shape)}; is it one encoder?")
    ids, probs = [], []
    for block in queries.split(BLOCK_ROWS) if len(queries) else (queries,):
        logits = logits_of(block).float()
        best = logits.sort(dim=1, descending=True, stable=True)
        ids.append(best.indices[:, :depth].clone())
        probs.append((best.values[:, :depth] - logits.logsumexp(dim=1, keepdim=True)).exp())
    return Shortlist(torch.cat(ids), torch.cat(probs))


def _class_means(exemplars: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(C, D) unit vectors of the class means, zero without exemplars, and the (C,) numbers of exemplars."""
    if labels.shape != exemplars.shape[:1] or (
        len(labels) and not 0 <= int(labels.min()) <= labels.max() < num_classes
    ):
        raise FewShotError(f"labels must be ({len(exemplars)},) whole numbers in [0, {num_classes})")
    sums = exemplars.new_zeros(num_classes, exemplars.shape[1]).index_add_(0, labels, exemplars)
    return normalize(sums, dim=1), torch.bincount(labels, minlength=num_classes)
