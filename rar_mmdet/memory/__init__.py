"""Category names and exemplars as vectors, searched for the closest categories."""

from rar_mmdet.memory.entries import Entries, EntryKind
from rar_mmdet.memory.memory import CategoryMemory, MemoryInfo
from rar_mmdet.memory.names import clean_name
from rar_mmdet.memory.templates import TEMPLATE_SETS, resolve_templates
from rar_mmdet.memory.text import TextMemory

__all__ = [
    "CategoryMemory",
    "Entries",
    "EntryKind",
    "MemoryInfo",
    "TEMPLATE_SETS",
    "TextMemory",
    "clean_name",
    "resolve_templates",
]
