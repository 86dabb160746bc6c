"""A FAISS index: which one, how it is built, and where it is kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torch import Tensor

from rar_mmdet.errors import ConfigError, HostError

__all__ = ["IndexSpec", "build_index", "find_graph", "keeps_vectors", "load_faiss", "read_or_build", "searching"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexSpec:
    """A FAISS index, and how far to search in it.

    `factory` is what `faiss.index_factory` reads, for instance 'Flat' (exact), 'HNSW64' (the paper's degree),
    'PCA64,HNSW64' (the paper's reduced dimension, 576 -> 64), 'IVF1024,Flat'.
    """

    factory: str = "HNSW64"
    ef_search: int = 256  # HNSW: candidates kept while searching; higher finds more and takes longer (ours)
    ef_construction: int = 64  # HNSW: the same while building
    nprobe: int = 8  # IVF: lists searched per query (ours)
    survivors: int | None = None  # rows that are scored exactly; `None`: 1.5 x depth x entries per category
    mass_samples: int = 256  # categories scored to estimate the mass outside the survivors

    def __post_init__(self) -> None:
        for name in ("ef_search", "ef_construction", "nprobe", "mass_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.survivors is not None and self.survivors < 1:
            raise ConfigError(f"survivors must be at least 1 or None, got {self.survivors}")

    @property
    def is_approximate(self) -> bool:
        """Whether neighbours can be missed and the softmax's denominator is an estimate."""
        return self.factory != "Flat"


def build_index(spec: IndexSpec, rows: Tensor) -> Any:
    """A FAISS index over rows (E, D) float32 on the CPU, trained where it needs that.

    Raises:
        ConfigError: FAISS does not know it, or cannot train it on so few rows.
        HostError: FAISS is not installed.
    """
    faiss = load_faiss()
    dim = rows.shape[1]
    try:
        index = faiss.index_factory(dim, spec.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"index={spec.factory!r} is no factory string of FAISS; for instance 'Flat', 'HNSW64', 'PCA64,HNSW32', "
            "'IVF256,Flat'"
        ) from error
    graph = find_graph(index)
    if graph is not None:
        graph.hnsw.efConstruction = spec.ef_construction
    data = np.ascontiguousarray(rows.numpy())
    if not index.is_trained:
        try:
            index.train(data)
        except RuntimeError as error:
            raise ConfigError(
                f"index={spec.factory!r} cannot be trained on {len(data)} vectors of {dim}: {error}"
            ) from error
    index.add(data)
    return index


def read_or_build(spec: IndexSpec, rows: Tensor, folder: Path) -> Any:
    """The index from its file, or built and written; one process at a time."""
    vectors = hashlib.sha256(np.ascontiguousarray(rows.numpy()).data)
    key = hashlib.sha256(
        json.dumps([spec.factory, spec.ef_construction, load_faiss().__version__, vectors.hexdigest()]).encode()
    ).hexdigest()[:24]
    path, said = folder / f"{key}.faiss", folder / f"{key}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            stored = _read(path, said, len(rows))
            if stored is None:
                stored = build_index(spec, rows)
                fresh = path.with_suffix(f".{os.getpid()}.tmp")
                load_faiss().write_index(stored, str(fresh))
                said.write_text(json.dumps({"factory": spec.factory, "sha256": _sha256(fresh)}))
                os.replace(fresh, path)
            return stored
    except OSError as error:
        logger.warning("the index cannot be kept in %s (%s), so it is built in every run; set cache_dir", folder, error)
        return build_index(spec, rows)


def _read(path: Path, said: Path, num_rows: int) -> Any | None:
    """The index in that file, unless there is none or it is not what was written."""
    if not path.is_file() or not said.is_file():
        return None
    try:
        if json.loads(said.read_text())["sha256"] == _sha256(path):
            index = load_faiss().read_index(str(path))
            if index.ntotal == num_rows:
                return index
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        logger.info("%s: %s", path, error)
    logger.warning("the index in %s is damaged; built anew", path)
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_graph(index: Any) -> Any | None:
    """The HNSW part of an index, whatever is in front of it."""
    faiss = load_faiss()
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if hasattr(inner, "hnsw") else None


def keeps_vectors(index: Any) -> bool:
    """Whether the index computes with the vectors themselves, so that its similarities need no second look."""
    faiss = load_faiss()
    return isinstance(faiss.downcast_index(index), (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat))


searching = threading.Lock()  # how far a graph is searched holds for all threads; a search itself uses all cores


def load_faiss() -> Any:
    """The package, imported where it is used.

    Raises:
        HostError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise HostError(
            "FaissMemory needs FAISS: pip install faiss-cpu   (or use its `source` alone, which searches exactly)"
        ) from error
    return faiss
