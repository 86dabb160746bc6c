"""Category names and exemplars as vectors, searched for the closest categories."""

from rar_mmdet.memory.base import MemorySource, Shortlister
from rar_mmdet.memory.entries import Entries, EntryKind
from rar_mmdet.memory.exemplar_cache import ExemplarCache, fit_cache
from rar_mmdet.memory.exemplars import Exemplar, encode_exemplars, read_exemplars, sample_exemplars
from rar_mmdet.memory.faiss_index import IndexSpec
from rar_mmdet.memory.faiss_search import FaissMemory, FaissSearch
from rar_mmdet.memory.memory import CategoryMemory, MemoryInfo
from rar_mmdet.memory.store import load_memory, save_memory
from rar_mmdet.memory.templates import TEMPLATE_SETS, resolve_templates
from rar_mmdet.memory.text import TextMemory

__all__ = [
    "CategoryMemory",
    "Entries",
    "EntryKind",
    "Exemplar",
    "ExemplarCache",
    "FaissMemory",
    "FaissSearch",
    "IndexSpec",
    "MemoryInfo",
    "MemorySource",
    "Shortlister",
    "TEMPLATE_SETS",
    "TextMemory",
    "encode_exemplars",
    "fit_cache",
    "load_memory",
    "read_exemplars",
    "resolve_templates",
    "sample_exemplars",
    "save_memory",
]
