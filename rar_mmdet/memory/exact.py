"""Exact scores of every category, and the best N of them with a fixed order among equals."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rar_mmdet.memory.entries import Entries, EntryKind

__all__ = [
    "CategoryScorer",
    "best_first",
    "nearest_rows",
    "prototypes",
    "search_exactly",
]

CHUNK_FLOATS = 1 << 21  # scores held at a time on a CPU: 8 MiB stay in its caches between the passes (measured)
GPU_CHUNK_FLOATS = 1 << 27  # 512 MiB keep a GPU busy


def best_first(scores: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The `depth` highest scores of each row, descending; among equals the lower column comes first.

    `torch.topk` leaves the order of equals open, and which of them are taken at the border. One extra value tells
    whether the border cuts through equals; only such rows are sorted in full.

    Args:
        scores: (R, C) float32; -inf marks columns that come last.
        depth: N <= C.

    Returns:
        ids (R, N) int64 and values (R, N).
    """
    num_columns = scores.shape[1]
    values, ids = scores.topk(min(depth + 1, num_columns), dim=1)
    equal = values[:, 1:] == values[:, :-1]
    if depth < num_columns:
        cut = equal[:, -1].nonzero().flatten()
        if len(cut):
            full = scores[cut].sort(dim=1, descending=True, stable=True)
            values[cut], ids[cut] = full.values[:, : depth + 1], full.indices[:, : depth + 1]
        equal, values, ids = equal[:, : depth - 1], values[:, :depth], ids[:, :depth]
    return _settle(ids.contiguous(), values.contiguous(), equal.any(dim=1))


def _settle(ids: Tensor, values: Tensor, unsettled: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the marked rows by value, equal values by id; such rows are few, and the others need no sort."""
    rows = unsettled.nonzero().flatten()
    if len(rows):
        by_id = ids[rows].sort(dim=1)
        by_value = values[rows].gather(1, by_id.indices).sort(dim=1, descending=True, stable=True)
        ids = ids.index_copy(0, rows, by_id.values.gather(1, by_value.indices))
        values = values.index_copy(0, rows, by_value.values)
    return ids, values


def log_sum_exp(scores: Tensor, top: Tensor) -> Tensor:
    """(R, 1) log of the sum of exp(scores) over a row whose maximum is `top`; overwrites `scores`.

    The maximum is known from the search, which saves `torch.logsumexp` a pass and its temporaries.
    """
    return top + scores.sub_(top).exp_().sum(dim=1, keepdim=True).log_()


def search_exactly(scorer: CategoryScorer, queries: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The best categories and their log-probabilities over the full vocabulary.

    Args:
        scorer: scores of all C categories.
        queries: (R, D) float32, already times the softmax's scale.
        depth: N <= C.

    Returns:
        ids (R, N) int64 and log-probabilities (R, N) float32, descending.
    """
    ids = torch.empty((len(queries), depth), dtype=torch.int64, device=queries.device)
    log_probs = torch.empty((len(queries), depth), device=queries.device)
    for part in _chunks(queries, scorer.width):
        scores = scorer(queries[part])
        ids[part], values = best_first(scores, depth)
        log_probs[part] = values - log_sum_exp(scores, values[:, :1])
    return ids, log_probs


def nearest_rows(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows with the largest dot products.

    Args:
        queries: (R, D) float32.
        rows: (E, D) float32, on the same device.
        k: at most E.

    Returns:
        ids (R, k) int64 and dot products (R, k) float32, descending; among equals the lower id comes first.
    """
    ids = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    values = torch.empty((len(queries), k), device=queries.device)
    for part in _chunks(queries, len(rows)):
        ids[part], values[part] = best_first(queries[part] @ rows.T, k)
    return ids, values


def _chunks(queries: Tensor, width: int) -> Iterator[slice]:
    """Slices of the queries whose scores, `width` floats each, fit the cache of the device."""
    floats = CHUNK_FLOATS if queries.device.type == "cpu" else GPU_CHUNK_FLOATS
    step = max(1, floats // width)
    for start in range(0, len(queries), step):
        yield slice(start, start + step)


def prototypes(entries: Entries, num_categories: int, text_weight: float | None) -> tuple[Tensor, Tensor]:
    """Vectors whose cosine sums equal the mean over a category's entries.

    The mean of dot products is the dot product with the mean, so "mean" needs one vector per category: the mean of its
    entries, not brought back to unit length. With `text_weight` w it is w·mean(texts) + (1 - w)·mean(images); a
    category that has only one kind uses that kind.

    Returns:
        (C, D) float32, and (C,) bool: the categories that have entries.
    """
    if text_weight is not None:
        texts, has_text = prototypes(entries.of_kind(EntryKind.TEXT), num_categories, None)
        images, has_image = prototypes(entries.of_kind(EntryKind.IMAGE), num_categories, None)
        weight = _mix_weights(has_text, has_image, text_weight)[:, None]
        return weight * texts + (1 - weight) * images, has_text | has_image
    counts = entries.counts(num_categories).to(entries.vectors.device)
    if len(entries) == num_categories and bool((counts == 1).all()):
        return entries.vectors, counts > 0  # no copy: the common memory of one prompt per category
    sums = entries.vectors.new_zeros((num_categories, entries.vectors.shape[1]))
    sums.index_add_(0, entries.category_ids, entries.vectors)
    return sums / counts.clamp(min=1)[:, None], counts > 0


class CategoryScorer:
    """Score of every category for every query: max or mean over its entries, or a mix of texts and images.

    Args:
        entries: what the memory holds, on the device to compute on.
        num_categories: C.
        aggregation: 'max' or 'mean' over a category's entries (of each kind, if mixed).
        text_weight: w in [0, 1] of w·text + (1 - w)·image; `None`: the kinds are not told apart.
    """

    def __init__(self, entries: Entries, num_categories: int, aggregation: str, text_weight: float | None) -> None:
        self.num_categories = num_categories
        counts = entries.counts(num_categories)
        self.has_entries = (counts > 0).to(entries.vectors.device)
        self.complete = bool(self.has_entries.all())
        self._mixed: tuple[CategoryScorer, CategoryScorer] | None = None
        self._weight: Tensor | None = None
        self._matrix: Tensor | None = None
        if aggregation == "mean" or (int(counts.max()) <= 1 and text_weight is None):
            self._matrix, _ = prototypes(entries, num_categories, text_weight)
        elif text_weight is not None:
            parts = [
                CategoryScorer(entries.of_kind(kind), num_categories, aggregation, None)
                for kind in (EntryKind.TEXT, EntryKind.IMAGE)
            ]
            self._mixed = (parts[0], parts[1])
            self._weight = _mix_weights(parts[0].has_entries, parts[1].has_entries, text_weight)
        else:
            self._entries, self._per_category = entries, int(counts.max()) if bool((counts == counts[0]).all()) else 0

    @property
    def width(self) -> int:
        """Floats needed per query; decides how many queries are scored at a time."""
        return self.num_categories if self._matrix is not None else self.num_categories + len(self._vectors)

    @property
    def _vectors(self) -> Tensor:
        if self._mixed is not None:
            return self._mixed[1]._vectors
        return self._matrix if self._matrix is not None else self._entries.vectors

    def __call__(self, queries: Tensor) -> Tensor:
        """(R, D) float32 -> (R, C) float32; -inf for categories without entries."""
        if self._mixed is not None:
            assert self._weight is not None
            text, image = (torch.nan_to_num(part(queries), neginf=0.0) for part in self._mixed)
            scores = self._weight * text + (1 - self._weight) * image
        elif self._matrix is not None:
            scores = queries @ self._matrix.T
        else:
            scores = self._max_over_entries(queries)
        return scores if self.complete else scores.masked_fill_(~self.has_entries, -torch.inf)

    def _max_over_entries(self, queries: Tensor) -> Tensor:
        similarity = queries @ self._entries.vectors.T  # (R, E), sorted by category
        if self._per_category:
            return similarity.view(len(queries), self.num_categories, self._per_category).amax(dim=2)
        out = similarity.new_full((len(queries), self.num_categories), -torch.inf)
        return out.scatter_reduce_(1, self._entries.category_ids.expand(len(queries), -1), similarity, "amax")


def _mix_weights(has_text: Tensor, has_image: Tensor, text_weight: float) -> Tensor:
    weight = torch.full(has_text.shape, text_weight, device=has_text.device)
    return weight.masked_fill(~has_image, 1.0).masked_fill(~has_text, 0.0)
