"""What a memory holds: vectors, each of one category, from a text or from an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError

__all__ = ["Entries", "EntryKind"]


class EntryKind(IntEnum):
    """Where a vector comes from."""

    TEXT = 0
    IMAGE = 1


@dataclass(frozen=True)
class Entries:
    """E vectors, sorted by category; several may belong to one category, and a category may have none."""

    vectors: Tensor  # (E, D) float32, unit length
    category_ids: Tensor  # (E,) int64 in [0, C), non-decreasing
    kinds: Tensor  # (E,) uint8, values of EntryKind
    sources: Sequence[str]  # E strings: the prompt, or the picture and annotation

    def __post_init__(self) -> None:
        count = len(self.vectors)
        if self.vectors.ndim != 2 or self.vectors.dtype != torch.float32:
            raise ValueError(f"vectors must be (E, D) float32, got {tuple(self.vectors.shape)} {self.vectors.dtype}")
        if not count == len(self.category_ids) == len(self.kinds) == len(self.sources):
            lengths = f"{len(self.category_ids)} category ids, {len(self.kinds)} kinds, {len(self.sources)} sources"
            raise ValueError(f"{count} vectors, but {lengths}; expected one of each per entry")

    def __len__(self) -> int:
        return len(self.vectors)

    @staticmethod
    def sorted(vectors: Tensor, category_ids: Tensor, kinds: Tensor | EntryKind, sources: Sequence[str]) -> Entries:
        """Entries from rows in any order; rows of one category keep their order.

        Raises:
            ConfigError: a vector is not finite, or not of unit length.
        """
        if not isinstance(kinds, Tensor):
            kinds = torch.full((len(vectors),), int(kinds), dtype=torch.uint8)
        norms = vectors.norm(dim=1)
        bad = ((norms - 1).abs() > 1e-3) | ~torch.isfinite(norms)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ConfigError(
                f"entry {first} ({sources[first]!r}) has length {norms[first]:.4g}, expected unit length. Is it what "
                "an encoder gave? It must return finite vectors of length 1"
            )
        order = category_ids.sort(stable=True).indices
        return Entries(
            vectors[order].contiguous(), category_ids[order], kinds[order], [sources[i] for i in order.tolist()]
        )

    def of_kind(self, kind: EntryKind) -> Entries:
        """The entries from text, or those from images."""
        rows = (self.kinds == kind).nonzero().flatten()
        return self if len(rows) == len(self) else self.take(rows)

    def take(self, rows: Tensor) -> Entries:
        """The entries of the given rows, which must keep the order of categories."""
        sources = [self.sources[i] for i in rows.tolist()]
        return Entries(self.vectors[rows], self.category_ids[rows], self.kinds[rows], sources)

    def counts(self, num_categories: int) -> Tensor:
        """(C,) int64: how many entries each category has."""
        return torch.bincount(self.category_ids, minlength=num_categories)

    @staticmethod
    def concat(parts: Sequence[Entries]) -> Entries:
        """All entries of several sets, sorted by category."""
        vectors = torch.cat([part.vectors for part in parts])
        sources = [source for part in parts for source in part.sources]
        return Entries.sorted(
            vectors, torch.cat([p.category_ids for p in parts]), torch.cat([p.kinds for p in parts]), sources
        )
