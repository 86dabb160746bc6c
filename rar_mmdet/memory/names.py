"""What people and prompts call a category. Identity is the index; names repeat (V3Det: 50, LVIS: 5 once shortened)."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

from rar_mmdet.errors import VocabularyError

__all__ = ["clean_name", "hash_names"]


def clean_name(name: str, *, keep_qualifier: bool = True) -> str:
    """A category's name as prompts and people read it.

    Underscores become spaces, runs of white space one space, unicode its composed form (NFC). A qualifier in brackets
    stays by default: without it LVIS's two bows, fishes, octopuses, pans and salmons would be the same prompt.

    >>> clean_name("cup_(drink)"), clean_name("bow_(weapon)", keep_qualifier=False)
    ('cup (drink)', 'bow')

    Raises:
        VocabularyError: nothing readable is left.
    """
    text = unicodedata.normalize("NFC", name).replace("_", " ")
    text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
    if not keep_qualifier:
        text = re.sub(r"\([^()]*\)", " ", text)
    text = " ".join(text.split())
    if not text:
        raise VocabularyError(f"category name {name!r} is empty once cleaned; give it a name")
    return text


def hash_names(names: Sequence[str]) -> str:
    """SHA-256 of names in their order."""
    return hashlib.sha256(json.dumps(list(names), ensure_ascii=False).encode()).hexdigest()
