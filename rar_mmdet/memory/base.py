"""What a recogniser needs of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from rar_mmdet.structures import Shortlist

__all__ = ["MemorySource", "Shortlister"]


class Shortlister(Protocol):
    """Finds the categories that are closest to a region."""

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable categories of each query, fewer if there are fewer.

        Args:
            queries: (R, D) float32 unit vectors.
            depth: N.
        """
        ...


class MemorySource(Protocol):
    """A recipe for a memory, or a ready one."""

    def prepare(self, encoder: Any, category_names: Sequence[str]) -> Shortlister:
        """The memory of these names by this encoder; a ready one checks that it is of them.

        Args:
            encoder: an `Encoder`, loaded when the recipe needs it.
            category_names: the vocabulary, in label order.

        Raises:
            MemoryMismatchError: a ready memory is of other names or another encoder.
        """
        ...
