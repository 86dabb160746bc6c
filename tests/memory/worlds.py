"""Data and oracles of the memory's tests."""

from __future__ import annotations

import torch
from torch import Tensor

from rar_mmdet.memory import CategoryMemory, Entries, EntryKind, FaissSearch, IndexSpec, MemoryInfo, Shortlister

INFO = MemoryInfo(encoder="fake@0", logit_scale=20.0, templates=("a photo of a {}",))


def unit(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def coarse(rows: int, dim: int = 16, seed: int = 0) -> Tensor:
    """Unit vectors of four coordinates ±1/2: dot products are multiples of 1/4, exact in float32, and often equal."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(rows, dim, generator=generator).argsort(dim=1)[:, :4]
    signs = torch.randint(0, 2, (rows, 4), generator=generator) - 0.5
    return torch.zeros(rows, dim).scatter_(1, places, signs)


def make_entries(vectors: Tensor, num_categories: int, *, images: float = 0.0, seed: int = 0) -> Entries:
    """Random categories, each with at least one entry where there are enough; a share of them from images."""
    generator = torch.Generator().manual_seed(seed)
    extra = torch.randint(0, num_categories, (max(len(vectors) - num_categories, 0),), generator=generator)
    ids = torch.cat([torch.arange(min(num_categories, len(vectors))), extra])
    kinds = (torch.rand(len(vectors), generator=generator) < images).to(torch.uint8)
    return Entries.sorted(vectors, ids, kinds, [f"s{i}" for i in range(len(vectors))])


def make_memory(entries: Entries, num_categories: int, **settings: object) -> CategoryMemory:
    names = [f"c{i}" for i in range(num_categories)]
    return CategoryMemory(entries, names, info=INFO, **settings)  # type: ignore[arg-type]


def make_search(entries: Entries, num_categories: int, index: str | IndexSpec, **settings: object) -> Shortlister:
    """The memory itself for 'exact', else a FAISS index over it."""
    memory = make_memory(entries, num_categories, **settings)
    return memory if index == "exact" else FaissSearch(memory, index)


def oracle(
    entries: Entries,
    num_categories: int,
    queries: Tensor,
    *,
    aggregation: str = "max",
    text_weight: float | None = None,
) -> Tensor:
    """(R, C) float64 cosines by a loop over categories; -inf without entries."""
    similarity = queries.double() @ entries.vectors.double().T
    scores = torch.full((len(queries), num_categories), -torch.inf, dtype=torch.float64)

    def joined(rows: Tensor) -> Tensor:
        part = similarity[:, rows]
        return part.amax(dim=1) if aggregation == "max" else part.mean(dim=1)

    for category in range(num_categories):
        own = entries.category_ids == category
        text, image = own & (entries.kinds == EntryKind.TEXT), own & (entries.kinds == EntryKind.IMAGE)
        if text_weight is not None and text.any() and image.any():
            scores[:, category] = text_weight * joined(text) + (1 - text_weight) * joined(image)
        elif own.any():
            scores[:, category] = joined(own)
    return scores


def ranked(scores: Tensor, scale: float, depth: int) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the best, equal scores by id."""
    probs = torch.softmax(scores * scale, dim=1)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :depth]
    return best, probs.gather(1, best)
