"""How good found names are: cACC and sACC, and the floors that a table must show beside them.

cACC looks at groups of photos and not at words; sACC at words and not at groups. Both as FineR's evaluator has them
(OatmealLiu/FineR, utils/metrics.py and utils/semantic_similarity.py), from their definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import normalize

from rar_mmdet.errors import CheckpointError, HostError, MissingAssetError
from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.files.names import clean_name

__all__ = [
    "SENTENCE_ENCODERS",
    "Floors",
    "SentenceEncoder",
    "clustering_accuracy",
    "semantic_floors",
    "semantic_similarity",
    "spelling_form",
]

# Short name -> hub id and most tokens of a text, as its sentence_bert_config.json says; both are Apache-2.0. FineR,
# and so Table 1, used the first; vic's semantic similarity is by the second, so that the two cannot be compared.
SENTENCE_ENCODERS = {
    "all-mpnet-base-v2": ("sentence-transformers/all-mpnet-base-v2", 384),
    "all-MiniLM-L6-v2": ("sentence-transformers/all-MiniLM-L6-v2", 256),
}
DEFAULT_MAX_TOKENS = 384
BATCH = 128  # texts of a forward pass


def clustering_accuracy(true_ids: ArrayLike, predicted_ids: ArrayLike) -> float:
    """cACC: the largest share of photos on a one-to-one matching of predicted ids and true ids.

    The assignment is by the Hungarian method on the rectangular table of counts (scipy). FineR pads it to a square,
    which changes nothing: rows that are added count no photo.

    Args:
        true_ids: (Q,) whole numbers >= 0; the class of each photo.
        predicted_ids: (Q,) whole numbers >= 0; places in the found vocabulary.

    Returns:
        A fraction in (0, 1].

    Raises:
        ValueError: no photos, unequal lengths, or ids that are negative or no whole numbers.
        HostError: SciPy is not installed.

    >>> clustering_accuracy([0, 0, 1, 1], [7, 7, 3, 7])
    0.75
    """
    truth, predicted = _ids(true_ids, "true_ids"), _ids(predicted_ids, "predicted_ids")
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true_ids and {len(predicted)} predicted_ids; expected one of each per photo")
    if not len(truth):
        raise ValueError("clustering_accuracy of no photos: true_ids is empty")
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise HostError("cACC needs SciPy's linear_sum_assignment; pip install scipy") from error
    classes, rows = np.unique(truth, return_inverse=True)
    names, columns = np.unique(predicted, return_inverse=True)
    counts = np.zeros((len(classes), len(names)), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(truth))


def _ids(values: ArrayLike, name: str) -> NDArray[np.int64]:
    ids = np.asarray(values)
    if ids.ndim != 1:
        raise ValueError(f"{name} must be a list of ids, (Q,); got the shape {ids.shape}")
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    if ids.dtype.kind not in "iuf" or not np.isfinite(ids).all() or (ids != np.floor(ids)).any():
        raise ValueError(f"{name} must be whole numbers, got {ids.dtype} such as {ids[:3].tolist()}")
    if (ids < 0).any():
        raise ValueError(
            f"{name} holds {ids.min()}: ids must not be negative (a photo without a name needs its own id)"
        )
    return ids.astype(np.int64)


def semantic_similarity(predicted_vectors: ArrayLike | Tensor, true_vectors: ArrayLike | Tensor) -> float:
    """sACC: the mean over photos of the cosine between the predicted and the true name, neither clipped nor rescaled.

    Args:
        predicted_vectors: (Q, D) vectors of the predicted names, of any length above 0.
        true_vectors: (Q, D) of the true names, by the same encoder.

    Returns:
        A number in [-1, 1]. Its floor is far above 0; see `semantic_floors`.

    Raises:
        ValueError: no photos, shapes that differ, a vector of zeros, or numbers that are not finite.
    """
    predicted, truth = _vectors(predicted_vectors, "predicted_vectors"), _vectors(true_vectors, "true_vectors")
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted_vectors {predicted.shape} and true_vectors {truth.shape} must be alike, (Q, D)")
    return float((predicted * truth).sum(axis=1).mean())


def _vectors(values: ArrayLike | Tensor, name: str) -> NDArray[np.float64]:
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be (Q, D) with at least one photo; got the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise ValueError(f"{name}: row {int(np.argmin(lengths))} is all zeros, so it has no direction")
    return np.asarray(array / lengths)


def spelling_form(name: str) -> str:
    """The one form in which names are compared by words: cleaned (`clean_name`) and in lower case.

    FineR compares raw strings; underscores and capitals of a set's own spelling then change sACC.

    >>> spelling_form("Yorkshire_Terrier")
    'yorkshire terrier'
    """
    return clean_name(name).casefold()


@dataclass(frozen=True)
class Floors:
    """What names that say nothing get."""

    constant: float  # one name for every photo: the best one of the vocabulary
    random: float  # a name of the vocabulary at random: its expectation


def semantic_floors(vocabulary_vectors: ArrayLike | Tensor, true_vectors: ArrayLike | Tensor) -> Floors:
    """sACC without looking at photos: one name for all of them, and names drawn evenly at random.

    Both are exact: the random one is the mean over all pairs of a name and a photo, so that it needs no seed.

    Args:
        vocabulary_vectors: (C, D) vectors of the names.
        true_vectors: (Q, D) vectors of the photos' true names.

    Raises:
        ValueError: as `semantic_similarity`.
    """
    names, truth = _vectors(vocabulary_vectors, "vocabulary_vectors"), _vectors(true_vectors, "true_vectors")
    if names.shape[1] != truth.shape[1]:
        raise ValueError(f"vocabulary_vectors {names.shape} and true_vectors {truth.shape} are of two encoders")
    by_name = names @ truth.mean(axis=0)
    return Floors(constant=float(by_name.max()), random=float(by_name.mean()))


class SentenceEncoder:
    """Texts to unit vectors as sentence-transformers does for its `all-*` models: mean over tokens, then length 1.

    Through transformers alone; equal to sentence-transformers within 1e-5. Nothing is downloaded.

    Args:
        model: a name of `SENTENCE_ENCODERS`, a hub id in the local hub cache, or a folder.
        max_tokens: texts are cut there; `None`: as published for the names, else 384.
        device: where it runs.
    """

    def __init__(
        self, model: str = "all-mpnet-base-v2", *, max_tokens: int | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.model = model
        source, published = SENTENCE_ENCODERS.get(model, (model, DEFAULT_MAX_TOKENS))
        self.max_tokens, self.device = max_tokens or published, torch.device(device)
        self.checkpoint = Checkpoint(source, None, what="sentence encoder", error=CheckpointError)
        self._parts: tuple[Any, Any] | None = None

    def missing_assets(self) -> list[str]:
        """What has to be fetched first, one line each."""
        return self.checkpoint.missing()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 unit vectors, on the CPU; T may be 0.

        Raises:
            MissingAssetError: the model is not on this machine.
            CheckpointError: it is no such model.
        """
        model, tokenizer = self._loaded()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of like length share a batch
        vectors = torch.zeros(len(texts), model.config.hidden_size)
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(states)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1e-9)
            vectors[rows] = normalize(mean, dim=1).float().cpu()
        return vectors

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            if missing := self.missing_assets():
                raise MissingAssetError("; ".join(missing))
            from transformers import AutoModel, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.checkpoint.folder, trust_remote_code=False)
                model = AutoModel.from_pretrained(self.checkpoint.folder, trust_remote_code=False, use_safetensors=True)
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"{self.model} could not be loaded as a sentence encoder: {error}") from error
            self._parts = model.to(self.device, torch.float32).eval(), tokenizer
        return self._parts
