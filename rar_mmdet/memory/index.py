"""FAISS instead of one matrix product: `Flat` (exact), `HNSW` (paper), reduced dimension (paper), any factory string.

With an approximate index only the survivors' scores are known, not the softmax's denominator. The mass of all other
categories is then estimated from a fixed random sample of categories, scored exactly: the sample's mean exp(score)
times the number of categories outside, and no more than if each of them reached the worst survivor.
`benchmarks/memory.py` prints the estimate's error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.errors import HostError
from rar_mmdet.memory.entries import Entries
from rar_mmdet.memory.exact import (
    CHUNK_FLOATS,
    CategoryScorer,
    best_first,
    in_order,
    log_sum_exp,
    prototypes,
    search_exactly,
)

__all__ = ["FaissSearch", "IndexSpec"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexSpec:
    """How a memory is searched.

    `factory` is 'torch' (exact, on the queries' device), or what `faiss.index_factory` reads, for instance 'Flat',
    'HNSW64' (the paper's degree), 'PCA64,HNSW32', 'IVF1024,Flat'. Short forms: 'flat', 'hnsw' (HNSW64) and 'pca-hnsw'
    (an eighth of the dimension, the paper's 576 -> 64, then HNSW64).
    """

    factory: str = "torch"
    ef_search: int = 256  # HNSW: candidates kept while searching; higher finds more and takes longer (ours)
    ef_construction: int = 64  # HNSW: the same while building
    nprobe: int = 8  # IVF: lists searched per query (ours)
    survivors: int | None = None  # rows that are scored exactly; `None`: 1.5 x depth x entries per category
    mass_samples: int = 256  # categories scored to estimate the mass outside the survivors

    def __post_init__(self) -> None:
        short = {"flat": "Flat", "hnsw": "HNSW64"}
        object.__setattr__(self, "factory", short.get(self.factory, self.factory))
        for name in ("ef_search", "ef_construction", "nprobe", "mass_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.survivors is not None and self.survivors < 1:
            raise ValueError(f"survivors must be at least 1 or None, got {self.survivors}")

    @property
    def is_approximate(self) -> bool:
        """Whether neighbours can be missed and the softmax's denominator is an estimate."""
        return self.factory not in ("torch", "Flat")

    def build_key(self) -> dict[str, Any]:
        """What a built index depends on, the vectors aside."""
        own = asdict(self)
        return {"factory": own["factory"], "ef_construction": own["ef_construction"]}


class FaissSearch:
    """Search through a FAISS index over a memory's rows, with exact scores for what it finds.

    The rows are the entries for 'max', and one vector per category where scores are means (see `prototypes`).

    Args:
        spec: which index, and how far to search.
        entries: the memory's entries, on the CPU.
        scorer: the memory's exact scores; for the denominator, and for queries the index serves too little.
        text_weight: as the memory's; together with 'max' only exact search by torch can serve it.
        index_file: a file of this very index, read instead of building.
    """

    def __init__(
        self,
        spec: IndexSpec,
        entries: Entries,
        scorer: CategoryScorer,
        *,
        aggregation: str,
        text_weight: float | None = None,
        index_file: Path | None = None,
    ) -> None:
        if aggregation == "max" and text_weight is not None:
            raise ValueError(
                f"index={spec.factory!r} cannot serve aggregation='max' with text_weight={text_weight}: the best entry "
                "of a mix is not the nearest vector. Use index='torch', or aggregation='mean'"
            )
        self.spec, self._scorer, num_categories = spec, scorer, scorer.num_categories
        if aggregation == "mean":
            rows, present = prototypes(entries, num_categories, text_weight)
            self._row_category = present.nonzero().flatten()
            self._rows = rows if bool(present.all()) else rows[present]
        else:
            self._row_category, self._rows = entries.category_ids, entries.vectors
        self._is_one_to_one = len(self._row_category.unique()) == len(self._row_category)
        self._num_present = int(scorer.has_entries.sum())
        stored = _read(index_file, len(self._rows)) if index_file is not None else None
        self.was_read = stored is not None
        self.index: Any = stored if stored is not None else _build(spec, self._rows)
        self._graph = _find_graph(self.index)
        lists = _faiss().try_extract_index_ivf(self.index)
        if lists is not None:
            lists.nprobe = spec.nprobe
        self._knows_scores = _keeps_vectors(self.index)
        self._sample, self._sample_scorer = self._draw_sample(entries, aggregation, text_weight)
        self._warned = False

    def search(self, queries: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """The best categories of each query.

        Args:
            queries: (R, D) float32 on the CPU, already times the softmax's scale.
            depth: N <= C.

        Returns:
            ids (R, N) int64 and log-probabilities (R, N) float32, descending.
        """
        if self.spec.is_approximate and not self._warned:
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
        if not self.spec.is_approximate:
            return self._finish_exact(queries, found, scores, depth)
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
            ids[~lacking], log_probs[~lacking] = self.search(queries[~lacking], depth)
        return ids, log_probs

    def write(self, path: Path) -> None:
        """Save the index, to be read by the next process."""
        _faiss().write_index(self.index, str(path))

    def _survivors(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Distinct categories of the nearest rows and their scores, best first; -inf where there are no more."""
        if self._graph is not None:
            self._graph.hnsw.efSearch = max(self.spec.ef_search, count)
        with _large_blocks():
            similarity, rows = (torch.from_numpy(a) for a in self.index.search(queries.contiguous().numpy(), count))
        if self._is_one_to_one and not self.spec.is_approximate:
            return self._row_category[rows], similarity
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

    def _finish_exact(self, queries: Tensor, found: Tensor, scores: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Exact denominators; queries whose best N the found rows do not settle are answered by the scorer."""
        ids = torch.zeros((len(queries), depth), dtype=torch.int64)
        log_probs = torch.empty((len(queries), depth))
        settled = torch.zeros(len(queries), dtype=torch.bool)
        if found.shape[1] > depth:
            # Rows that were not found score no more than the next category, so a gap before it settles the best N.
            settled = torch.isfinite(scores[:, depth]) & (scores[:, depth - 1] > scores[:, depth])
            ids[settled] = found[settled, :depth]
        for start in range(0, len(queries), step := max(1, CHUNK_FLOATS // self._scorer.width)):
            part = slice(start, start + step)
            all_scores = self._scorer(queries[part])
            ids[part], values = in_order(all_scores, ids[part])
            open_rows = (~settled[part]).nonzero().flatten()
            if len(open_rows):
                ids[part][open_rows], values[open_rows] = best_first(all_scores[open_rows], depth)
            log_probs[part] = values - log_sum_exp(all_scores, values[:, :1])
        return ids, log_probs

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

    def _draw_sample(
        self, entries: Entries, aggregation: str, text_weight: float | None
    ) -> tuple[Tensor, CategoryScorer]:
        """Some categories and a scorer for them alone; the same ones every time."""
        present = self._scorer.has_entries.nonzero().flatten()
        generator = torch.Generator().manual_seed(0)
        sample = present[torch.randperm(len(present), generator=generator)[: self.spec.mass_samples]].sort().values
        new_id = torch.full((self._scorer.num_categories,), -1, dtype=torch.int64)
        new_id[sample] = torch.arange(len(sample))
        rows = (new_id[entries.category_ids] >= 0).nonzero().flatten()
        chosen = entries.take(rows)
        renumbered = Entries(chosen.vectors, new_id[chosen.category_ids], chosen.kinds, chosen.sources)
        return sample, CategoryScorer(renumbered, len(sample), aggregation, text_weight)


def _score_rows(queries: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """(R, k) scores of k rows per query by the original vectors."""
    out = torch.empty(rows.shape)
    step = max(1, (1 << 22) // (rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        torch.bmm(vectors[rows[part]], queries[part, :, None], out=out[part, :, None])
    return out


def _build(spec: IndexSpec, rows: Tensor) -> Any:
    faiss = _faiss()
    dim = rows.shape[1]
    factory = f"PCA{max(dim // 8, 1)},HNSW64" if spec.factory == "pca-hnsw" else spec.factory
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"index={spec.factory!r} is neither 'torch' nor a FAISS factory string; for instance 'Flat', 'HNSW64', "
            "'PCA64,HNSW32', 'IVF256,Flat'"
        ) from error
    graph = _find_graph(index)
    if graph is not None:
        graph.hnsw.efConstruction = spec.ef_construction
    data = np.ascontiguousarray(rows.numpy())
    if not index.is_trained:
        try:
            index.train(data)
        except RuntimeError as error:
            raise ValueError(
                f"index={spec.factory!r} cannot be trained on {len(data)} vectors of {dim}: {error}"
            ) from error
    index.add(data)
    return index


def _read(path: Path, num_rows: int) -> Any:
    index = _faiss().read_index(str(path))
    return index if index.ntotal == num_rows else None


def _find_graph(index: Any) -> Any | None:
    """The HNSW part of an index, whatever is in front of it."""
    faiss = _faiss()
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if hasattr(inner, "hnsw") else None


def _keeps_vectors(index: Any) -> bool:
    """Whether the index computes with the vectors themselves, so that its similarities need no second look."""
    faiss = _faiss()
    return isinstance(faiss.downcast_index(index), (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat))


@contextmanager
def _large_blocks() -> Iterator[None]:
    """FAISS multiplies in blocks of 1,024 database rows; 4,096 took 0.6 of the time at 13,204 x 512 (measured)."""
    settings = _faiss().cvar
    before = settings.distance_compute_blas_database_bs
    settings.distance_compute_blas_database_bs = 4096
    try:
        yield
    finally:
        settings.distance_compute_blas_database_bs = before


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise HostError("this index needs FAISS: pip install faiss-cpu   (or use index='torch')") from error
    return faiss
