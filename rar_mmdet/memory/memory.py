"""The memory of categories: exact search, and what it was made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError, MemoryMismatchError, VocabularyError
from rar_mmdet.files.vocabulary import check_same_vocabulary
from rar_mmdet.memory.base import EntryEncoder
from rar_mmdet.memory.entries import Entries, EntryKind
from rar_mmdet.memory.exact import CategoryScorer, nearest_rows, search_exactly
from rar_mmdet.structures import Shortlist

__all__ = ["CategoryMemory", "MemoryInfo", "check_encoder"]


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

    Identity is the index: names may repeat. Among equal scores the lower index comes first. The search is exact and
    in float32, whatever autocast is around it. Threads may share a memory.

    Args:
        entries: the vectors and what they belong to.
        category_names: C names, in label order.
        info: what the vectors were made of.
        aggregation: 'max' or 'mean' over a category's entries.
        text_weight: w in [0, 1]: score = w·(over texts) + (1 - w)·(over images); `None` does not tell kinds apart.
        temperature: τ of the softmax over all C categories; `None`: what the encoder learned for texts.

    Raises:
        ConfigError: a setting is not one of these.
        VocabularyError: no names, no entries, or entries of categories beyond the names.
    """

    def __init__(
        self,
        entries: Entries,
        category_names: Sequence[str],
        *,
        info: MemoryInfo,
        aggregation: str = "max",
        text_weight: float | None = None,
        temperature: float | None = None,
    ) -> None:
        check_scoring(aggregation, text_weight, temperature)
        if not category_names:
            raise VocabularyError("a memory needs at least one category name, got none")
        if len(entries) == 0:
            raise VocabularyError("a memory needs at least one entry, got none")
        if int(entries.category_ids[-1]) >= len(category_names) or int(entries.category_ids[0]) < 0:
            raise VocabularyError(
                f"entries name categories up to {int(entries.category_ids[-1])}, but there are {len(category_names)} "
                "category names"
            )
        self.entries, self.category_names, self.info = entries, tuple(category_names), info
        self.aggregation, self.text_weight, self.temperature = aggregation, text_weight, temperature
        self._vectors_on: dict[torch.device, Tensor] = {}
        self._scorers: dict[torch.device, CategoryScorer] = {}

    @property
    def num_categories(self) -> int:
        """C."""
        return len(self.category_names)

    @property
    def dim(self) -> int:
        """D."""
        return self.entries.vectors.shape[1]

    @property
    def scale(self) -> float:
        """1 / τ: what cosines are multiplied by before the softmax."""
        return self.info.logit_scale if self.temperature is None else 1 / self.temperature

    def __repr__(self) -> str:
        texts = int((self.entries.kinds == EntryKind.TEXT).sum())
        return (
            f"CategoryMemory({self.num_categories} categories, {texts} text and {len(self.entries) - texts} image "
            f"entries of {self.dim}, encoder {self.info.encoder})"
        )

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> CategoryMemory:
        """This memory, once it is known to be of these names, however they are spelt, and of this encoder.

        Raises:
            MemoryMismatchError: it is of others; the message says where they differ.
        """
        check_encoder(self.info, encoder, "this memory")
        check_same_vocabulary(
            self.category_names,
            category_names,
            names_of="this memory",
            classes_of="the recogniser",
            advice="Give the recogniser the memory's names, or `TextMemory()`, which builds a memory of its names",
            error=MemoryMismatchError,
        )
        return self

    @torch.inference_mode()
    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The categories closest to each query.

        Args:
            queries: (R, D) unit vectors, any device and float type.
            depth: N; at most C are returned.

        Returns:
            ids and probabilities (R, min(N, C)), best first, on the queries' device.

        Raises:
            ConfigError: the queries have another size, are not finite, or `depth` is not positive.
        """
        self.check_queries(queries, depth)
        with torch.autocast(queries.device.type, enabled=False):
            ids, log_probs = search_exactly(
                self.scorer(queries.device), queries.float() * self.scale, min(depth, self.num_categories)
            )
        return Shortlist(ids, log_probs.clamp_(max=0).exp_())  # rounding may leave log p a hair above 0

    @torch.inference_mode()
    def nearest_entries(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The single entries closest to each query; categories, weights and temperature play no part.

        Args:
            queries: (R, D) unit vectors, any device and float type.
            k: entries for each query; at most E are returned.

        Returns:
            entry ids (R, min(k, E)) int64, rows of `entries`, and their cosines float32, best first; among equal
            cosines the lower id comes first.

        Raises:
            ConfigError: as in `search`.
        """
        self.check_queries(queries, k)
        device = queries.device
        if device not in self._vectors_on:
            self._vectors_on[device] = self.entries.vectors.to(device)
        with torch.autocast(device.type, enabled=False):
            return nearest_rows(queries.float(), self._vectors_on[device], min(k, len(self.entries)))

    def with_names(self, category_names: Sequence[str]) -> CategoryMemory:
        """This memory with its C names spelt as given."""
        return self if tuple(category_names) == self.category_names else self._like(self.entries, category_names)

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
        return self._like(Entries.concat(parts), category_names)

    def check_queries(self, queries: Tensor, depth: int) -> None:
        """Refuse queries that cannot be searched.

        Raises:
            ConfigError: they have another size, are not finite, or `depth` is not positive.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ConfigError(
                f"queries must be (R, {self.dim}), got {tuple(queries.shape)}; the memory was built by encoder "
                f"{self.info.encoder}"
            )
        if depth < 1:
            raise ConfigError(f"depth must be at least 1, got {depth}")
        if not torch.isfinite(queries.sum()):
            rows = (~torch.isfinite(queries)).any(dim=1).nonzero().flatten().tolist()
            if rows:  # the sum of many finite halves may overflow
                raise ConfigError(f"queries are not finite in rows {rows[:5]}; try precision='fp32' for the encoder")

    def scorer(self, device: torch.device) -> CategoryScorer:
        """Scores of all categories, on that device."""
        if device not in self._scorers:
            own = self.entries
            moved = Entries(own.vectors.to(device), own.category_ids.to(device), own.kinds.to(device), own.sources)
            self._scorers[device] = CategoryScorer(moved, self.num_categories, self.aggregation, self.text_weight)
        return self._scorers[device]

    def _like(self, entries: Entries, category_names: Sequence[str], info: MemoryInfo | None = None) -> CategoryMemory:
        return CategoryMemory(
            entries,
            category_names,
            info=info or self.info,
            aggregation=self.aggregation,
            text_weight=self.text_weight,
            temperature=self.temperature,
        )


def check_scoring(aggregation: str, text_weight: float | None, temperature: float | None) -> None:
    """Refuse settings of a search that mean nothing.

    Raises:
        ConfigError: naming the setting.
    """
    if aggregation not in ("max", "mean"):
        raise ConfigError(f"aggregation must be 'max' or 'mean', got {aggregation!r}")
    if text_weight is not None and not 0 <= text_weight <= 1:
        raise ConfigError(f"text_weight must be in [0, 1] or None, got {text_weight}")
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(
            f"temperature must be a positive number such as 0.01, or None for the encoder's own, got {temperature}"
        )


def check_encoder(info: MemoryInfo, encoder: EntryEncoder, where: object) -> None:
    """Refuse vectors of another encoder.

    Raises:
        MemoryMismatchError: naming both; it says so when the precision alone differs.
    """
    if info.encoder == encoder.fingerprint:
        return
    stored, _, stored_precision = info.encoder.rpartition(":")
    own, _, own_precision = encoder.fingerprint.rpartition(":")
    if stored == own and stored:
        raise MemoryMismatchError(
            f"{where} was built in {stored_precision}, the encoder runs in {own_precision}; their vectors differ a "
            f"little. Set the encoder's precision={stored_precision!r}, or build the memory in {own_precision}"
        )
    raise MemoryMismatchError(
        f"{where} was built by encoder {info.encoder}, this config's is {encoder.fingerprint}; their vectors cannot be "
        "compared. Build it with this encoder, or use that one"
    )
