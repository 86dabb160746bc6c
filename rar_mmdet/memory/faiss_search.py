"""FAISS instead of one matrix product: `HNSW` (paper), reduced dimension (paper), any factory string.

A plug-in beside the exact search of `CategoryMemory`, for exemplar memories of 10^5 entries and more. `Flat` is the
exact search itself: the softmax needs every score, so the product of FAISS would be a second one. With another
index only the survivors' scores are known, not the softmax's denominator. The mass of all other categories
is then estimated from a fixed random sample of categories, scored exactly: the sample's mean exp(score) times the
number of categories outside, and no more than if each of them reached the worst survivor. `benchmarks/memory.py` prints
the estimate's error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError
from rar_mmdet.memory.base import EntryEncoder, MemorySource
from rar_mmdet.memory.cache import default_cache_dir
from rar_mmdet.memory.entries import Entries
from rar_mmdet.memory.exact import CategoryScorer, prototypes, search_exactly
from rar_mmdet.memory.faiss_index import (
    IndexSpec,
    build_index,
    find_graph,
    keeps_vectors,
    load_faiss,
    read_or_build,
    searching,
)
from rar_mmdet.memory.memory import CategoryMemory
from rar_mmdet.memory.text import TextMemory
from rar_mmdet.structures import Shortlist

__all__ = ["FaissMemory", "FaissSearch"]

logger = logging.getLogger(__name__)


class FaissMemory:
    """A recipe: the memory of another recipe, searched by FAISS.

    An approximate index is built once and kept on disk, keyed by its vectors and settings; of several processes one
    builds it. In a config: `memory=dict(type="FaissMemory", source=dict(type="TextMemory", ...), index="HNSW64")`.

    Args:
        source: a recipe that gives a `CategoryMemory`, or such a memory.
        index: an `IndexSpec`, or its `factory`.
        cache_dir: folder of built indexes; `None`: `RAR_MMDET_CACHE` or `~/.cache/rar_mmdet`.
    """

    def __init__(
        self, source: MemorySource, index: IndexSpec | str = "HNSW64", *, cache_dir: str | Path | None = None
    ) -> None:
        self.source = source
        self.index = IndexSpec(index) if isinstance(index, str) else index
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def missing_assets(self) -> list[str]:
        """What must be there before it can be prepared: FAISS, and what its source needs. Cheap."""
        lines = [] if find_spec("faiss") else ["FAISS\n  pip install faiss-cpu, or use `source` alone"]
        return lines + (self.source.missing_assets() if isinstance(self.source, TextMemory) else [])

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> FaissSearch:
        """The memory of these names behind its index, from disk if it is there, else built and kept.

        Raises:
            MemoryMismatchError: as the source does.
            ConfigError: the source gives no `CategoryMemory`, or the index cannot serve its settings.
        """
        memory = self.source.prepare(encoder, category_names)
        if not isinstance(memory, CategoryMemory):
            raise ConfigError(
                f"FaissMemory needs a source of a CategoryMemory, such as TextMemory; got one of a "
                f"{type(memory).__name__}"
            )
        return FaissSearch(memory, self.index, cache_dir=self.cache_dir or default_cache_dir() / "faiss")


class FaissSearch:
    """Search of a memory through a FAISS index over its rows, with exact scores for what it finds.

    The rows are the entries for 'max', and one vector per category where scores are means (see `prototypes`). Queries
    come back on their own device; the index is on the CPU.

    Args:
        memory: what is searched.
        index: which index, and how far to search; an `IndexSpec`, or its `factory`. `Flat` needs no index at all.
        cache_dir: folder in which an approximate index is kept; `None` builds it anew.

    Raises:
        ConfigError: FAISS does not know the index, or it cannot serve the memory's settings.
        HostError: FAISS is not installed.
    """

    def __init__(
        self, memory: CategoryMemory, index: IndexSpec | str = "HNSW64", *, cache_dir: Path | None = None
    ) -> None:
        self.memory, self.spec = memory, IndexSpec(index) if isinstance(index, str) else index
        self.index: Any = None
        if not self.spec.is_approximate:
            return
        if memory.aggregation == "max" and memory.text_weight is not None:
            raise ConfigError(
                f"index={self.spec.factory!r} cannot serve aggregation='max' with text_weight={memory.text_weight}: "
                "the best entry of a mix is not the nearest vector. Search without FAISS, or take aggregation='mean'"
            )
        entries = memory.entries
        self._scorer = memory.scorer(torch.device("cpu"))
        if memory.aggregation == "mean":
            rows, present = prototypes(entries, memory.num_categories, memory.text_weight)
            self._row_category = present.nonzero().flatten()
            self._rows = rows if bool(present.all()) else rows[present]
        else:
            self._row_category, self._rows = entries.category_ids, entries.vectors
        self._num_present = int(self._scorer.has_entries.sum())
        if cache_dir is None:
            self.index = build_index(self.spec, self._rows)
        else:
            self.index = read_or_build(self.spec, self._rows, cache_dir)
        self._graph = find_graph(self.index)
        lists = load_faiss().try_extract_index_ivf(self.index)
        if lists is not None:
            lists.nprobe = self.spec.nprobe
        self._knows_scores = keeps_vectors(self.index)
        self._sample, self._sample_scorer = self._draw_sample()
        self._warned = False

    @property
    def category_names(self) -> tuple[str, ...]:
        """C names, in label order."""
        return self.memory.category_names

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> FaissSearch:
        """Itself, once its memory is known to be of these names and this encoder; see `CategoryMemory.prepare`."""
        self.memory.prepare(encoder, category_names)
        return self

    @torch.inference_mode()
    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The categories closest to each query; as `CategoryMemory.search`, but for what an approximate index misses.

        Args:
            queries: (R, D) unit vectors, any device and float type.
            depth: N; at most C are returned.

        Returns:
            ids and probabilities (R, min(N, C)), best first, on the queries' device.

        Raises:
            ConfigError: as in `CategoryMemory.search`.
        """
        if len(queries) == 0 or not self.spec.is_approximate:
            return self.memory.search(queries, depth)
        self.memory.check_queries(queries, depth)
        with torch.autocast(queries.device.type, enabled=False), torch.autocast("cpu", enabled=False):
            scaled = (queries.float() * self.memory.scale).cpu()
            ids, log_probs = self._search(scaled, min(depth, self.memory.num_categories))
        probs = log_probs.clamp_(max=0).exp_()  # rounding may leave log p a hair above 0
        return Shortlist(ids.to(queries.device), probs.to(queries.device))

    def _search(self, queries: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Ids (R, N) and log-probabilities (R, N), descending, of queries that are times the softmax's scale."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "index %s is approximate: neighbours can be missed, and the probability mass outside the survivors is "
                "estimated from %d sampled categories",
                self.spec.factory,
                len(self._sample),
            )
        per_category = -(-len(self._rows) // max(self._num_present, 1))
        wanted = self.spec.survivors or (depth + 1 if per_category == 1 else -(-3 * depth * per_category // 2))
        found, scores = self._survivors(queries, min(max(wanted, depth), len(self._rows)))
        lacking = torch.ones(len(queries), dtype=torch.bool)
        if scores.shape[1] >= depth:
            lacking = torch.isinf(scores[:, :depth]).any(dim=1)
            if not lacking.any():
                return found[:, :depth], scores[:, :depth] - self._estimate_log_mass(queries, found, scores)
        logger.info("%d of %d queries: too few categories found, searched exactly", int(lacking.sum()), len(queries))
        ids = torch.empty((len(queries), depth), dtype=torch.int64)
        log_probs = torch.empty((len(queries), depth))
        ids[lacking], log_probs[lacking] = search_exactly(self._scorer, queries[lacking], depth)
        if not lacking.all():
            ids[~lacking], log_probs[~lacking] = self._search(queries[~lacking], depth)
        return ids, log_probs

    def _survivors(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Distinct categories of the nearest rows and their scores, best first; -inf where there are no more."""
        with searching:
            if self._graph is not None:
                self._graph.hnsw.efSearch = max(self.spec.ef_search, count)
            similarity, rows = (torch.from_numpy(a) for a in self.index.search(queries.contiguous().numpy(), count))
        missing = rows < 0
        if not self._knows_scores:
            similarity = _score_rows(queries, self._rows, rows.clamp(min=0))
        similarity = similarity.masked_fill(missing, -torch.inf)
        # Sorted by category, best row first; later rows of a category drop out; then by score. Both sorts are stable,
        # so that among equal scores the lower category comes first.
        by_score = similarity.sort(dim=1, descending=True, stable=True)
        categories = self._row_category[rows.clamp(min=0)].gather(1, by_score.indices)
        by_category = categories.sort(dim=1, stable=True)
        scores = by_score.values.gather(1, by_category.indices)
        scores[:, 1:].masked_fill_(by_category.values[:, 1:] == by_category.values[:, :-1], -torch.inf)
        best = scores.sort(dim=1, descending=True, stable=True)
        return by_category.values.gather(1, best.indices), best.values

    def _estimate_log_mass(self, queries: Tensor, found: Tensor, scores: Tensor) -> Tensor:
        """(R, 1) log of the softmax's denominator: survivors exactly, the others by the sample."""
        known = torch.isfinite(scores)
        num_outside = self._num_present - known.sum(dim=1, keepdim=True)
        inside = scores.logsumexp(dim=1, keepdim=True)
        sample_scores = self._sample_scorer(queries)  # (R, m)
        ordered = found.masked_fill(~known, -1).sort(dim=1).values
        position = torch.searchsorted(ordered, self._sample.repeat(len(queries), 1)).clamp(max=ordered.shape[1] - 1)
        is_survivor = ordered.gather(1, position) == self._sample
        count = (~is_survivor).sum(dim=1, keepdim=True)
        mean = sample_scores.masked_fill(is_survivor, -torch.inf).logsumexp(dim=1, keepdim=True) - count.log()
        worst = scores.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
        outside = torch.where(count > 0, torch.minimum(mean, worst), worst) + num_outside.log()
        return torch.logaddexp(inside, outside)

    def _draw_sample(self) -> tuple[Tensor, CategoryScorer]:
        """Some categories and a scorer for them alone; the same ones every time."""
        entries, memory = self.memory.entries, self.memory
        present = self._scorer.has_entries.nonzero().flatten()
        generator = torch.Generator().manual_seed(0)
        sample = present[torch.randperm(len(present), generator=generator)[: self.spec.mass_samples]].sort().values
        new_id = torch.full((self._scorer.num_categories,), -1, dtype=torch.int64)
        new_id[sample] = torch.arange(len(sample))
        rows = (new_id[entries.category_ids] >= 0).nonzero().flatten()
        chosen = entries.take(rows)
        renumbered = Entries(chosen.vectors, new_id[chosen.category_ids], chosen.kinds, chosen.sources)
        return sample, CategoryScorer(renumbered, len(sample), memory.aggregation, memory.text_weight)


def _score_rows(queries: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """(R, k) scores of k rows per query by the original vectors."""
    out = torch.empty(rows.shape)
    step = max(1, (1 << 22) // (rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        torch.bmm(vectors[rows[part]], queries[part, :, None], out=out[part, :, None])
    return out
