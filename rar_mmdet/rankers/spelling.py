"""How models spell the names they were given: quotes, accents, hyphens, plurals, articles, brackets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

__all__ = ["Spellings", "normalise", "singular", "unify", "without_accents", "without_article"]

_SAME = {
    **dict.fromkeys("“”„‟«»〝〞″＂「」『』《》【】〔〕", '"'),
    **dict.fromkeys("‘’‚‛‹›′´＇", "'"),
    **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
    **dict.fromkeys("、；", ","),
    **dict.fromkeys("。｡", "."),
    **dict.fromkeys("\ufe0f\u20e3", None),  # what makes a digit a key-cap emoji
    "_": " ",
}
_TABLE = str.maketrans(_SAME)
_IRREGULAR = {"man": "men", "child": "children", "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth"}
_IRREGULAR |= {"person": "people", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "wolf": "wolves"}
_SHORTEST_JOINED = 5  # characters: 'hotdog' is 'hot dog', but 'ab' need not be 'a b'
_SHORTEST_PLURAL = 3


def unify(text: str) -> str:
    """One form for what is written in many: width, quotes, dashes, commas, white space; case and line breaks stay."""
    text = unicodedata.normalize("NFKC", text.translate(_TABLE)).translate(_TABLE)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return re.sub(r"[^\S\n]+", " ", text)


def normalise(text: str) -> str:
    """`unify`, and one case.

    >>> normalise("‘Ｒｅｄ_Car’、 “dog”")
    '\'red car\', "dog"'
    """
    return unify(text).casefold()


class Spellings:
    """The candidates of a question, by everything a model may write for them.

    Args:
        names: K candidates. A spelling that fits two different names fits neither; the exact spelling always counts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.columns: dict[str, list[int]] = {}
        for column, name in enumerate(names):
            self.columns.setdefault(normalise(name).strip(), []).append(column)
        self.columns.pop("", None)
        self.names = {name: name for name in self.columns}
        # Prompts show a list as Python prints it; a model may repeat what it read there, backslashes and all.
        for name in names:
            if (plain := normalise(name).strip()) and (printed := normalise(repr(name)[1:-1]).strip()):
                self.names.setdefault(printed, plain)
        exact = set(self.names)
        meant: dict[str, set[str]] = {}
        for name in self.columns:
            for spelling in _variants(name) - exact:
                meant.setdefault(spelling, set()).add(name)
        self.names |= {spelling: min(whose) for spelling, whose in meant.items() if len(whose) == 1}
        self._by_first: dict[str, list[str]] = {}
        for spelling in sorted(self.names, key=len, reverse=True):
            self._by_first.setdefault(spelling[0], []).append(spelling)

    def at(self, text: str, position: int) -> Iterator[tuple[str, int]]:
        """Candidates whose spelling stands at `position` of a normalised text, longest first, and where each ends."""
        for spelling in self._by_first.get(text[position : position + 1], ()):
            if text.startswith(spelling, position):
                yield self.names[spelling], position + len(spelling)

    def whole(self, text: str) -> str | None:
        """The candidate that a normalised text is, quotes, marks and an article aside."""
        bare = text.strip(" \"'`*.!:,\n")
        return self.names.get(text.strip()) or self.names.get(bare) or self.names.get(without_article(bare))


def without_article(text: str) -> str:
    """'a dog' -> 'dog'."""
    return re.sub(r"^(?:an?|the|one|some)\s+", "", text)


@lru_cache(maxsize=65_536)
def _variants(name: str) -> frozenset[str]:
    """Other ways to write a normalised name."""
    found = {name}
    found |= {" ".join(re.sub(r"\([^()]*\)", " ", text).split()) for text in found}
    found |= {without_accents(text) for text in found}
    found |= {text.replace("'", "") for text in found}
    found |= {text.replace("-", " ") for text in found} | {text.replace(" ", "-") for text in found}
    joined = {re.sub(r"[\s-]", "", text) for text in found if re.fullmatch(r"[\w\s-]+", text)}
    found |= {text for text in joined if len(text) >= _SHORTEST_JOINED}
    found |= {other for text in found for other in _other_numbers(text)}
    return frozenset({" ".join(text.split()) for text in found} - {"", name})


def without_accents(text: str) -> str:
    """'creme brulee'; letters whose marks are all they are, as in Devanagari, keep them."""
    bare = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
    return unicodedata.normalize("NFC", bare) if bare.isascii() else text


def singular(text: str) -> str:
    """A normalised text with its last word in singular; one form for each, though not always an English word.

    >>> singular("red foxes"), singular("grey wolves"), singular("iris")
    ('red fox', 'grey wolf', 'iris')
    """
    start = max(text.rfind(" "), text.rfind("-")) + 1
    stem, word = text[:start], text[start:]
    for one, many in _IRREGULAR.items():
        if word.endswith(many):
            return stem + word.removesuffix(many) + one
    if len(word) <= _SHORTEST_PLURAL or not word.isascii() or word.endswith(("ss", "us", "is")):
        return text
    if word.endswith("ies"):
        return f"{stem}{word[:-3]}y"
    if word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return stem + word[:-2]
    return stem + word.removesuffix("s")


def _other_numbers(text: str) -> Iterator[str]:
    """The text with its last word in plural, and in singular."""
    start = max(text.rfind(" "), text.rfind("-")) + 1
    stem, word = text[:start], text[start:]
    if len(word) < _SHORTEST_PLURAL or not word.isalpha() or not word.isascii():
        return
    for one, many in _IRREGULAR.items():
        if word.endswith(one):
            yield stem + word.removesuffix(one) + many
        if word.endswith(many):
            yield stem + word.removesuffix(many) + one
    yield f"{stem}{word}s"
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        yield f"{stem}{word}es"
    if word.endswith("y"):
        yield f"{stem}{word[:-1]}ies"
    if word.endswith("ies"):
        yield f"{stem}{word[:-3]}y"
    if word.endswith("es"):
        yield f"{stem}{word[:-2]}"
    if word.endswith("s") and not word.endswith("ss"):
        yield f"{stem}{word[:-1]}"
