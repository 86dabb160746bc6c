"""Free text of a model -> a permutation of the candidates, whatever the text is.

A candidate counts as named only where an *item* of the reply is that name and nothing else: 'polar bear' does not name
'bear'. Lists are read as JSON where they are, and else scanned with the candidates in hand, so names with apostrophes,
commas or brackets need no escaping. Nothing is ever evaluated.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from rar_mmdet.structures import RankStatus

__all__ = ["Parsed", "parse_letter", "parse_ranking"]

_MAX_CHARS = 8_192  # more than any list needs; keeps the scan linear in practice for a model that babbles
_MAX_LISTS = 32  # lists tried of each kind
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "´": "'", "_": " "})
_BULLET = re.compile(r"(?:\(?\d{1,3}[.):]|[A-Z][.)]|[-*•])\s+", re.IGNORECASE)
_OPENED = re.compile(r"[\"'`*]*[^\S\n]?")
_CLOSED = re.compile(r"[^\S\n]?[\"'`*]*[^\S\n]?[.!]?[^\S\n]*")
_JSON_LIST = re.compile(r'\[\s*"(?:[^"\\]|\\.)*"(?:\s*,\s*"(?:[^"\\]|\\.)*")*\s*\]', re.DOTALL)
_TUPLE = re.compile(r"\W*?\(")  # only where the reply begins: later ones are asides, 'a wolf (not a dog, cat)'
_SEPARATOR = re.compile(r"[-=]{0,3}>|[,;|→⇒\n]")
_IN_LIST = re.compile(rf"{_SEPARATOR.pattern}|\]")
_IN_TUPLE = re.compile(rf"{_SEPARATOR.pattern}|\)")
_LINE = re.compile(r"\n")
_LEAD = r"(?:^|\b(?:is|are|shows|depicts|answer|category|object)\b)[\s:]*(?:an?\s+|the\s+)?[\"'`*]*"
_NEGATION = re.compile(r"\b(?:no|not|cannot|none|neither|nor|without)\b|n't\b")


@dataclass(frozen=True)
class Parsed:
    """A permutation of 0..K-1, best first, and how much of it the reply said."""

    order: tuple[int, ...]
    status: RankStatus


def parse_ranking(reply: str, names: Sequence[str]) -> Parsed:
    """The order a reply gives to the candidates; candidates it does not name follow in retrieval order.

    Args:
        reply: anything.
        names: the K candidates in retrieval order; repeats are allowed and are served in that order.

    Returns:
        `OK` if the reply lists every candidate once and nothing else, `PARTIAL` if it names at least one, `FALLBACK`
        (retrieval order) if it names none.

    >>> parse_ranking("['wolf', 'dog']", ["cat", "dog"])
    Parsed(order=(1, 0), status=<RankStatus.PARTIAL: 1>)
    """
    text = _without_thoughts(reply)[:_MAX_CHARS]
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        columns.setdefault(_normalise(name).strip(), []).append(column)
    columns.pop("", None)
    # Prompts show a list as Python prints it; a model may repeat what it read there, backslashes and all.
    spellings = {_normalise(repr(name)[1:-1]).strip(): _normalise(name).strip() for name in names}
    spellings = {spelling: name for spelling, name in spellings.items() if name} | {name: name for name in columns}
    best = Parsed(tuple(range(len(names))), RankStatus.FALLBACK)
    for items in _readings(text, sorted(spellings, key=len, reverse=True)):
        named = [None if item is None else spellings[item] for item in items]
        order, complete = _assign(named, columns, len(names))
        rest = [column for column in range(len(names)) if column not in order]
        if order and complete and not rest:
            return Parsed(tuple(order), RankStatus.OK)
        if order and best.status is RankStatus.FALLBACK:
            best = Parsed((*order, *rest), RankStatus.PARTIAL)
    return best


def parse_letter(reply: str, k: int) -> int | None:
    """The option (0..k-1) that a reply like 'B', '(b).' or 'Answer: B' chooses, or `None`.

    >>> parse_letter("Answer: B.", 3), parse_letter("A dog", 3)
    (1, None)
    """
    text = _without_thoughts(reply)[:200]
    match = re.fullmatch(r"\W*(?:(?:the\s+)?(?:answer|option)(?:\s+is)?\W*)?([A-Z])\W*", text, re.IGNORECASE)
    index = ord(match.group(1).upper()) - ord("A") if match else k
    return index if index < k else None


def _normalise(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold()
    return re.sub(r"[^\S\n]+", " ", text)


def _without_thoughts(reply: str) -> str:
    """What follows the last `</think>` outside thoughts cut short: those list candidates that are then rejected."""
    return reply.rpartition("</think>")[2].partition("<think>")[0]


def _readings(text: str, names: list[str]) -> Iterator[list[str | None]]:
    """Ways to read the reply as items, most literal first; an item is a candidate's name or `None`."""
    for found in islice(_JSON_LIST.finditer(text), _MAX_LISTS):
        with suppress(ValueError):  # an escape that JSON does not know
            items = json.loads(found.group(), strict=False)
            yield _scan("\n".join(_normalise(item.replace("\n", " ")) for item in items), 0, names, _LINE)
    text = _normalise(text)
    for bracket in islice(re.finditer(r"\[", text), _MAX_LISTS):
        yield _scan(text, bracket.end(), names, _IN_LIST)
    if opened := _TUPLE.match(text):
        yield _scan(text, opened.end(), names, _IN_TUPLE)
    yield _scan(text, 0, names, _SEPARATOR)
    yield _sentence(text, names)


def _scan(text: str, position: int, names: list[str], separator: re.Pattern[str]) -> list[str | None]:
    """Read items until a closing bracket that is a `separator`, or the end."""
    items: list[str | None] = []
    while position < len(text):
        while position < len(text) and text[position].isspace():
            position += 1
        bullet = _BULLET.match(text, position)
        found = _name_at(text, position, names, separator)
        if found is None and bullet is not None:
            position = bullet.end()
            found = _name_at(text, position, names, separator)
        if found is not None:
            items.append(found[0])
            position = found[1]
        else:
            end = separator.search(text, position)
            stop = end.start() if end else len(text)
            if text[position:stop].strip(" \"'`.*"):
                items.append(None)
            position = stop
        passed = separator.match(text, position)
        if passed is None or passed.group() in ("]", ")"):
            break
        position = passed.end()
    return items


def _name_at(text: str, position: int, names: list[str], separator: re.Pattern[str]) -> tuple[str, int] | None:
    """The longest candidate that is the whole item at `position`, and where the item's separator stands."""
    opened = _OPENED.match(text, position)
    starts = {position, opened.end() if opened else position}
    for name in names:
        for start in starts:
            if text.startswith(name, start):
                tail = _CLOSED.match(text, start + len(name))
                end = tail.end() if tail else start + len(name)
                if end == len(text) or separator.match(text, end):
                    return name, end
    return None


def _sentence(text: str, names: list[str]) -> list[str | None]:
    """'The object is a cat.': one candidate where such a sentence ends, unless something is denied."""
    if _NEGATION.search(text):
        return []
    for name in names:
        if re.search(_LEAD + re.escape(name) + r"[\"'`*]*\s*(?:[.!\n]|$)", text):
            return [name, None]
    return []


def _assign(items: list[str | None], columns: dict[str, list[int]], k: int) -> tuple[list[int], bool]:
    """Columns in the order named, and whether the items were just that: no repeats, nothing unknown."""
    unused = {name: list(found) for name, found in columns.items()}
    order = []
    for item in items:
        if item is not None and unused[item]:
            order.append(unused[item].pop(0))
    return order, len(items) == len(order) <= k
