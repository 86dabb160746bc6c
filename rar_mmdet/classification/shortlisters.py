"""The rows of a few-shot table that need no language model: from stored vectors to a shortlister, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rar_mmdet.errors import ConfigError
from rar_mmdet.memory.base import Shortlister
from rar_mmdet.memory.classifiers import (
    NearestImages,
    TipAdapter,
    class_mean_classifier,
    gda_classifier,
    image_text_classifier,
    text_classifier,
)
from rar_mmdet.memory.few_shot import TEXT_SCALE, GaussianClassifier, fit_gda, tip_keys
from rar_mmdet.memory.tuning import tune_gda, tune_tip

__all__ = ["DESCRIPTIONS", "SHORTLISTERS", "TEXT_ALONE", "VISION", "Vectors", "balanced_alpha"]


@dataclass(frozen=True)
class Vectors:
    """What a row is made from. Never the test part."""

    text: Tensor  # (D, C) unit columns
    exemplars: Tensor  # (N, D) unit vectors
    labels: Tensor  # (N,) int64
    val: Tensor | None = None  # (V, D), to choose knobs on; `None`: fixed settings
    val_labels: Tensor | None = None  # (V,)
    described: Tensor | None = None  # (D, C) unit columns of descriptions
    scale: float = TEXT_SCALE  # of cosines between photos, for encoders that know no texts

    @property
    def num_classes(self) -> int:
        """C."""
        return self.text.shape[1]


def balanced_alpha(vectors: Vectors, gda: GaussianClassifier) -> float:
    """GDA's weight without a val part: text and Gaussians spread a photo's logits alike, on the exemplars.

    The ratio of the two mean standard deviations over classes. Ours: the authors choose among seven decades on a val
    part, because |W| grows as exemplars get alike; the ratio takes out just that.
    """
    spread = (vectors.exemplars @ gda.weight + gda.bias).std(dim=1).mean()
    text_spread = (TEXT_SCALE * vectors.exemplars @ vectors.text).std(dim=1).mean()
    return float(text_spread / spread) if float(spread) > 0 else 0.0


def _gda(vectors: Vectors) -> Shortlister:
    gda = fit_gda(vectors.exemplars, vectors.labels, vectors.num_classes)
    if vectors.val is None or vectors.val_labels is None:
        return gda_classifier(vectors.text, gda, balanced_alpha(vectors, gda))
    return gda_classifier(vectors.text, gda, tune_gda(vectors.val, vectors.val_labels, vectors.text, gda))


def _tip(vectors: Vectors) -> Shortlister:
    keys = tip_keys(vectors.exemplars[None])
    if vectors.val is None or vectors.val_labels is None:
        return TipAdapter(vectors.text, keys, vectors.labels)
    alpha, beta = tune_tip(vectors.val, vectors.val_labels, keys, vectors.labels, vectors.text)
    return TipAdapter(vectors.text, keys, vectors.labels, alpha, beta)


def _descriptions(vectors: Vectors) -> Shortlister:
    if vectors.described is None:
        raise ConfigError("row 'descriptions' needs `descriptions` in the config: a JSON file {class name: [sentence]}")
    return text_classifier(vectors.described)


DESCRIPTIONS = "descriptions"  # the row that needs a file of sentences
VISION = "vision-knn"  # the row of the encoder that knows no texts
TEXT_ALONE = ("text", DESCRIPTIONS)  # rows that use no exemplars: shots and seeds do not change them
# Name -> how it is made.
SHORTLISTERS: dict[str, Callable[[Vectors], Shortlister]] = {
    "text": lambda v: text_classifier(v.text),
    DESCRIPTIONS: _descriptions,
    "knn": lambda v: NearestImages(v.exemplars, v.labels, v.num_classes),
    "mean": lambda v: class_mean_classifier(v.exemplars, v.labels, v.num_classes),
    "text+mean": lambda v: image_text_classifier(v.text, v.exemplars, v.labels),
    "tip": _tip,
    "gda": _gda,
    VISION: lambda v: NearestImages(v.exemplars, v.labels, v.num_classes, v.scale),
}
