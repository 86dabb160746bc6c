"""The memory of categories: search, and what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rar_mmdet.errors import VocabularyError
from rar_mmdet.memory.entries import Entries, EntryKind
from rar_mmdet.memory.exact import CategoryScorer, best_first
from rar_mmdet.structures import Shortlist

__all__ = ["CategoryMemory", "MemoryInfo"]

CHUNK_FLOATS = 1 << 25  # scores held at a time: 128 MiB (ours; beyond this the matrix product gains nothing)


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
    """

    def __init__(
        self,
        entries: Entries,
        category_names: Sequence[str],
        *,
        info: MemoryInfo,
        aggregation: str = "max",
        text_weight: float | None = None,
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
        self._scorers: dict[torch.device, CategoryScorer] = {}

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
        scorer = self._scorer(queries.device)
        ids, probs = [queries.new_zeros((0, depth), dtype=torch.int64)], [queries.new_zeros((0, depth)).float()]
        for chunk in (queries.float() * scale).split(max(1, CHUNK_FLOATS // scorer.width)):
            scores = scorer(chunk)
            best, values = best_first(scores, depth)
            ids.append(best)
            probs.append((values - scores.logsumexp(dim=1, keepdim=True)).exp_())
        return Shortlist(torch.cat(ids), torch.cat(probs))

    def save(self, folder: str | Path) -> Path:
        """Write the memory as one folder, atomically; an older one there is replaced. See `docs/memory.md`."""
        from rar_mmdet.memory.store import save

        return save(self, Path(folder))

    @staticmethod
    def load(
        folder: str | Path, *, verify: bool = True, aggregation: str = "max", text_weight: float | None = None
    ) -> CategoryMemory:
        """Open a saved memory; vectors stay in the file and are read as needed (mmap)."""
        from rar_mmdet.memory.store import load

        stored = load(Path(folder), verify=verify)
        return CategoryMemory(
            stored.entries, stored.category_names, info=stored.info, aggregation=aggregation, text_weight=text_weight
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
