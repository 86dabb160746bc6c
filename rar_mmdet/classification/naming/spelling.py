"""Guessed names: what a model wrote for one, as a name; and when two of them are the same."""

from __future__ import annotations

import re

from rar_mmdet.files.names import cleaned
from rar_mmdet.rankers.spelling import normalise, singular, unify, without_accents, without_article

__all__ = ["is_latin", "names_in", "spelling_key", "tidy"]

_MARKS = " \t\"'`*_#.:;,!?()[]{}<>|~-"
_NUMBER = re.compile(r"^\s*(?:[-*•]\s+|\(?\d{1,2}[.):]\s*|[a-hA-H][.)]\s+)")
_OPENING = re.compile(
    r"^(?:sure[,!.]?\s*)?(?:the\s+|this\s+|that\s+)?"
    r"(?:answer|photo|picture|image|object|subject|it|this|that|[\w ]{1,30}?\s+in\s+(?:the|this)\s+(?:\w+\s+)?\w+)?\s*"
    r"(?:shows?|is|are|appears? to be|looks? like|seems? to be|depicts?|could be|'s)\s*:?"
    r"\s+(?:most likely\s+|probably\s+|likely\s+)?(?=\S)",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"\s*\([^()]*\)")
_LONGEST = 8  # words: what is longer is a sentence and no name
_NOTHING = {"unknown", "unsure", "n/a", "none", "object", "i don't know", "not sure", "unidentified", "unclear"}


def tidy(guess: str) -> str:
    """A guess as a name: one line, no marks, number, article or opening words around it; nothing if none is left.

    >>> tidy("1. **A Yorkshire_Terrier.**"), tidy("It is most likely a red fox (Vulpes vulpes)"), tidy("unknown")
    ('Yorkshire Terrier', 'red fox', '')
    """
    text = _IN_BRACKETS.sub("", cleaned(unify(_NUMBER.sub("", guess)))).strip(_MARKS)
    text = _OPENING.sub("", text).strip(_MARKS)
    text = re.sub(r"^(?:an?|the|one|some)\s+", "", text, flags=re.IGNORECASE).strip(_MARKS)
    is_name = len(text) > 1 and text.casefold() not in _NOTHING and len(text.split()) <= _LONGEST
    return text if is_name else ""


def names_in(reply: str) -> list[str]:
    """The names a reply lists, in its order: one a line, or between commas, semicolons, slashes or 'or'.

    >>> names_in("1. red fox\\n2. Arctic fox, grey wolf")
    ['red fox', 'Arctic fox', 'grey wolf']
    """
    lines = [part for line in reply.splitlines() for part in re.split(r"[,;/]|\bor\b", _NUMBER.sub("", line))]
    return list(dict.fromkeys(name for line in lines if (name := tidy(line))))


def spelling_key(name: str) -> str:
    """Equal for names that differ in case, accents, hyphens, blanks, apostrophes, an article or the plural alone.

    >>> spelling_key("The Red-Foxes") == spelling_key("redfox")
    True
    """
    text = without_article(without_accents(normalise(name)).strip(_MARKS))
    return re.sub(r"[\s'\-]", "", singular(text))


def is_latin(name: str) -> bool:
    """Whether a name is written in Latin letters: those the encoders' vocabularies and sACC's models know.

    >>> is_latin("crème brûlée"), is_latin("狐狸")
    (True, False)
    """
    letters = [char for char in name if char.isalpha()]
    return bool(letters) and all(char < "\u0250" or "\u1e00" <= char <= "\u1eff" for char in letters)
