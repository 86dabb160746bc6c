"""What people and prompts call a category. Identity is the index; names repeat (V3Det: 50, LVIS: 5 once shortened)."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from rar_mmdet.errors import VocabularyError

__all__ = ["clean_name", "cleaned", "counted", "did_you_mean", "kind_of", "short", "shown", "vocabulary_hash"]

NUM_SHOWN = 3  # examples in a message; a list of 13,204 names helps nobody


def clean_name(name: str, *, keep_qualifier: bool = True) -> str:
    """A category's name as prompts and people read it.

    Underscores become spaces, runs of white space one space, unicode its composed form (NFC). A qualifier in brackets
    stays by default: without it LVIS's two bows, fishes, octopuses, pans and salmons would be the same prompt.

    >>> clean_name("cup_(drink)"), clean_name("bow_(weapon)", keep_qualifier=False)
    ('cup (drink)', 'bow')

    Raises:
        VocabularyError: nothing readable is left.
    """
    text = cleaned(name)
    if not keep_qualifier:
        text = " ".join(re.sub(r"\([^()]*\)", " ", text).split())
    if not text:
        raise VocabularyError(f"category name {name!r} is empty once cleaned; give it a name")
    return text


def cleaned(name: str) -> str:
    """`clean_name`, for names of which nothing may be left."""
    if name.isascii() and name.isprintable():
        return " ".join(name.replace("_", " ").split())
    text = unicodedata.normalize("NFC", name).replace("_", " ")
    return " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())


def vocabulary_hash(names: Iterable[str]) -> str:
    """SHA-256 over cleaned names in their order: equal where `check_same_vocabulary` finds no difference."""
    return hashlib.sha256(json.dumps([cleaned(name) for name in names], ensure_ascii=False).encode()).hexdigest()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(items: Sequence[str], separator: str = ", ") -> str:
    """The first few items, and how many more there are."""
    more = len(items) - NUM_SHOWN
    return separator.join(items[:NUM_SHOWN]) + (f"{separator}and {more} more" if more > 0 else "")


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: '1 line', '2 lines'."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def kind_of(value: Any) -> str:
    """A value and its type, for messages."""
    return "nothing (null)" if value is None else f"{short(value)} ({type(value).__name__})"


def short(value: Any) -> str:
    """A value as text of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
