"""The memory of categories: search, and what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.errors import MemoryMismatchError, VocabularyError
from rar_mmdet.files.vocabulary import clean_name
from rar_mmdet.memory.entries import Entries, EntryKind
from rar_mmdet.memory.exact import CategoryScorer, search_exactly
from rar_mmdet.memory.index import FaissSearch, IndexSpec
from rar_mmdet.structures import Shortlist

__all__ = ["CategoryMemory", "MemoryInfo", "index_key"]


@dataclass(frozen=True)
class MemoryInfo:
    """What the vectors were made of; a memory is refused where these do not fit."""

    encoder: str  # the encoder's fingerprint
    logit_scale: float  # 1 / τ, learned by the encoder
    templates: tuple[str, ...] = ()
    ensemble: str = "average"  # 'average': one vector per name; 'separate': one per prompt
    keep_qualifier: bool = True  # "(drink)" stays in prompts
    dataset: str = ""  # for people: where names and exemplars come from


class CategoryMemory:
    """Categories as vectors; finds the N closest of each query with their softmax over the full vocabulary.

    Identity is the index: names may repeat. Among equal scores the lower index comes first.

    Args:
        entries: the vectors and what they belong to.
        category_names: C names, in label order.
        info: what the vectors were made of.
        aggregation: 'max' or 'mean' over a category's entries.
        text_weight: w in [0, 1]: score = w·(over texts) + (1 - w)·(over images); `None` does not tell kinds apart.
        index: how to search; an `IndexSpec` or its `factory`.
        index_file: an index of these vectors built earlier.
    """

    def __init__(
        self,
        entries: Entries,
        category_names: Sequence[str],
        *,
        info: MemoryInfo,
        aggregation: str = "max",
        text_weight: float | None = None,
        index: IndexSpec | str = "torch",
        index_file: Path | None = None,
    ) -> None:
        if not category_names:
            raise VocabularyError("a memory needs at least one category name, got none")
        if len(entries) == 0:
            raise VocabularyError("a memory needs at least one entry, got none")
        if aggregation not in ("max", "mean"):
            raise ValueError(f"aggregation must be 'max' or 'mean', got {aggregation!r}")
        if text_weight is not None and not 0 <= text_weight <= 1:
            raise ValueError(f"text_weight must be in [0, 1] or None, got {text_weight}")
        if int(entries.category_ids[-1]) >= len(category_names) or int(entries.category_ids[0]) < 0:
            raise VocabularyError(
                f"entries name categories up to {int(entries.category_ids[-1])}, but there are {len(category_names)} "
                "category names"
            )
        self.entries, self.category_names, self.info = entries, tuple(category_names), info
        self.aggregation, self.text_weight = aggregation, text_weight
        self.index = IndexSpec(index) if isinstance(index, str) else index
        self._scorers: dict[torch.device, CategoryScorer] = {}
        self.faiss: FaissSearch | None = None
        if self.index.factory != "torch":
            self.faiss = FaissSearch(
                self.index,
                entries,
                self._scorer(torch.device("cpu")),
                aggregation=aggregation,
                text_weight=text_weight,
                index_file=index_file,
            )

    @property
    def num_categories(self) -> int:
        """C."""
        return len(self.category_names)

    @property
    def dim(self) -> int:
        """D."""
        return self.entries.vectors.shape[1]

    def __repr__(self) -> str:
        texts = int((self.entries.kinds == EntryKind.TEXT).sum())
        return (
            f"CategoryMemory({self.num_categories} categories, {texts} text and {len(self.entries) - texts} image "
            f"entries of {self.dim}, encoder {self.info.encoder})"
        )

    def prepare(self, encoder: Any, category_names: Sequence[str]) -> CategoryMemory:
        """This memory, once it is known to be of these names and this encoder.

        Raises:
            MemoryMismatchError: it is not.
        """
        if encoder.fingerprint != self.info.encoder:
            raise MemoryMismatchError(
                f"this memory was made by encoder {self.info.encoder}, the recogniser has {encoder.fingerprint}. "
                "Use that encoder, or TextMemory() to build a memory by this one"
            )
        if [clean_name(name) for name in self.category_names] != [clean_name(name) for name in category_names]:
            raise MemoryMismatchError(
                f"this memory holds {self.num_categories} categories, the recogniser has {len(category_names)} other "
                "names. Use TextMemory() to build a memory of these names"
            )
        return self

    @torch.inference_mode()
    def search(self, queries: Tensor, depth: int, temperature: float | None = None) -> Shortlist:
        """The categories closest to each query.

        Args:
            queries: (R, D) unit vectors, any device and float type.
            depth: N; at most C are returned.
            temperature: τ of the softmax over all C categories; `None`: what the encoder learned.

        Returns:
            ids and probabilities (R, min(N, C)), best first, on the queries' device.

        Raises:
            ValueError: the queries have another size, are not finite, or `depth` or `temperature` is not positive.
        """
        scale = self._check(queries, depth, temperature)
        depth = min(depth, self.num_categories)
        scaled = queries.float() * scale
        if self.faiss is None or len(queries) == 0:
            ids, log_probs = search_exactly(self._scorer(queries.device), scaled, depth)
        else:
            ids, log_probs = (found.to(queries.device) for found in self.faiss.search(scaled.cpu(), depth))
        return Shortlist(ids, log_probs.clamp_(max=0).exp_())  # rounding may leave log p a hair above 0

    def with_entries(self, more: Entries, dataset: str | None = None) -> CategoryMemory:
        """This memory and further entries of its categories."""
        info = self.info if dataset is None else replace(self.info, dataset=dataset)
        return self._like(Entries.concat([self.entries, more]), self.category_names, info)

    def with_categories(self, old_ids: Sequence[int | None], category_names: Sequence[str]) -> CategoryMemory:
        """The memory of another vocabulary: category i keeps the entries of `old_ids[i]`; `None` starts empty."""
        parts = []
        for new_id, old_id in enumerate(old_ids):
            if old_id is None:
                continue
            first, last = torch.searchsorted(self.entries.category_ids, torch.tensor([old_id, old_id + 1])).tolist()
            own = self.entries.take(torch.arange(first, last))
            parts.append(replace(own, category_ids=torch.full((last - first,), new_id, dtype=torch.int64)))
        if not parts:
            raise VocabularyError("none of the old categories is kept; build a memory of the new names instead")
        return self._like(Entries.concat(parts), category_names, self.info)

    def save(self, folder: str | Path) -> Path:
        """Write the memory as one folder, atomically; an older one there is replaced. See `docs/memory.md`."""
        from rar_mmdet.memory.store import save

        return save(self, Path(folder))

    @staticmethod
    def load(
        folder: str | Path,
        *,
        verify: bool = True,
        aggregation: str = "max",
        text_weight: float | None = None,
        index: IndexSpec | str = "torch",
    ) -> CategoryMemory:
        """Open a saved memory; vectors stay in the file and are read as needed (mmap).

        Args:
            folder: what `save` wrote.
            verify: compare every file with its hash.
            aggregation: see the class.
            text_weight: see the class.
            index: how to search; read from the folder if it was saved with this very index, else built.
        """
        from rar_mmdet.memory.store import load

        stored = load(Path(folder), verify=verify)
        spec = IndexSpec(index) if isinstance(index, str) else index
        fits = stored.index == index_key(spec, aggregation, text_weight)
        return CategoryMemory(
            stored.entries,
            stored.category_names,
            info=stored.info,
            aggregation=aggregation,
            text_weight=text_weight,
            index=spec,
            index_file=stored.index_file if fits else None,
        )

    def _like(self, entries: Entries, category_names: Sequence[str], info: MemoryInfo) -> CategoryMemory:
        return CategoryMemory(
            entries,
            category_names,
            info=info,
            aggregation=self.aggregation,
            text_weight=self.text_weight,
            index=self.index,
        )

    def _check(self, queries: Tensor, depth: int, temperature: float | None) -> float:
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"queries must be (R, {self.dim}), got {tuple(queries.shape)}; the memory was built by encoder "
                f"{self.info.encoder}"
            )
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not torch.isfinite(queries.sum()):
            rows = (~torch.isfinite(queries)).any(dim=1).nonzero().flatten().tolist()
            raise ValueError(f"queries are not finite in rows {rows[:5]}; try precision='fp32' for the encoder")
        return 1 / temperature if temperature is not None else self.info.logit_scale

    def _scorer(self, device: torch.device) -> CategoryScorer:
        if device not in self._scorers:
            own = self.entries
            moved = Entries(own.vectors.to(device), own.category_ids.to(device), own.kinds.to(device), own.sources)
            self._scorers[device] = CategoryScorer(moved, self.num_categories, self.aggregation, self.text_weight)
        return self._scorers[device]


def index_key(spec: IndexSpec, aggregation: str, text_weight: float | None) -> dict[str, Any]:
    """What an index on disk depends on beside the vectors; two equal keys may share a file."""
    return {**spec.build_key(), "aggregation": aggregation, "text_weight": text_weight}
