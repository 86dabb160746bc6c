"""Free text of a model -> a permutation of the candidates, whatever the text is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from rar_mmdet.rankers.readings import ANSWER_WORDS, Item, final_part, readings
from rar_mmdet.rankers.spelling import Spellings, normalise, unify, without_article
from rar_mmdet.structures import RankStatus

__all__ = ["Parsed", "parse_choice", "parse_ranking"]

# Letters: around them marks, before them 'the answer is', behind them a name or a reason.
# Possessive, so that no text makes the search run wild.
_MARKS, _CLOSING = r"[\s\"'`*~$(\[{<.:,-]*+", r"(?:です|だ)?\W*+"
_IS = r"(?:is:?|would be|must be|should be|ist|est|es|è|é|是|は|为|為|:|=)"
_BEFORE = rf"{_MARKS}(?:{ANSWER_WORDS} ?)?{_IS}?{_MARKS}(?:(?:the )?(?:option|choice|letter|选项|选|選))?{_MARKS}"
_ALONE = re.compile(rf"{_BEFORE}([A-Z]){_CLOSING}", re.IGNORECASE)
_BEHIND = re.compile(
    rf"{_BEFORE}([A-Z])[\"'`*~$]*+\s?(?:[.):\]}}>]|-{{1,3}}>?|=)[\"'`*~$\s]*+(\S.*)", re.IGNORECASE | re.DOTALL
)
_GLUED = re.compile(rf"(?i:{_BEFORE})([A-Z])[\"'`*~$]*+,?\s(\S.*)", re.DOTALL)
_LIST = re.compile(
    r"[\s\"'`*(\[]*+[A-Z](?:[\"'`*).]*+ ?(?:[,;\n]|[-=]{0,3}>{1,3}) ?[\"'`*(]*+[A-Z])+[\s\"'`*)\].]*+", re.IGNORECASE
)
_TOLD = re.compile(
    rf"(?:(?P<answer>(?i:{ANSWER_WORDS} ?{_IS}))"
    r"|(?i:\b(?:option|choice|letter|choose|select|pick|therefore|thus|hence|so|it is|it's|say)\b|选项?|選|选择|:))"
    r"\s?(?i:option\b|letter\b|is\b|:|,)?\s?[\"'`*($\[{]{0,4}(?P<letter>[A-Z])(?![A-Za-z0-9'])"
    r"(?!\s+(?!because|since|as|due|which|and)\w)"
)
_RIGHT = re.compile(rf"(?i:{_BEFORE})([A-Z])\s+(?:is|fits|matches|shows|depicts)\b(?!\s+(?:not|wrong|incorrect|un))")
_WHY = re.compile(r"(?:because|since|as|due|for)\b", re.IGNORECASE)


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
        `OK` if the reply lists every candidate once and nothing else (marks, scores and reasons aside), `PARTIAL` if it
        names at least one, `FALLBACK` (retrieval order) if it names none. Where every item has a score, the scores
        decide. Of several complete lists the first counts that does not just repeat the question.

    >>> parse_ranking("['wolf', 'dog']", ["cat", "dog"])
    Parsed(order=(1, 0), status=<RankStatus.PARTIAL: 1>)
    """
    return _parse(reply, tuple(names))


# A reply is read when its list closes, and once more when it is complete.
@lru_cache(maxsize=1024)
def _parse(reply: str, names: tuple[str, ...]) -> Parsed:
    spellings, asked = _spellings(names), list(range(len(names)))
    best: list[int] = []
    for text in final_part(reply):
        repeated = False
        for items in readings(text, spellings):
            order, complete = _assign(_by_score(items), spellings.columns)
            if complete and order and len(order) == len(names):
                if order != asked or text.count("[") < 2:
                    return Parsed(tuple(order), RankStatus.OK)
                repeated = True
            if len(order) > len(best):
                best = order
        if repeated:
            return Parsed(tuple(asked), RankStatus.OK)
    return _with_the_rest(best, len(names))


def parse_choice(reply: str, names: Sequence[str]) -> Parsed:
    """The order behind an answer by letter: 'B', '(b).', 'Answer: B', 'B. dog', 'dog', or 'B > A > C'.

    Args:
        reply: anything.
        names: the candidates behind A, B, C, ...

    Returns:
        `OK` for a list of all, `PARTIAL` for one or some, `FALLBACK` where no option is named, or where letter and name
        contradict each other.

    >>> parse_choice("**B) dog**", ["cat", "dog", "cow"])
    Parsed(order=(1, 0, 2), status=<RankStatus.PARTIAL: 1>)
    """
    listed = parse_ranking(reply, names)
    for text in final_part(reply):
        chosen = _chosen(unify(text).strip(), names)
        if chosen is None:
            return _with_the_rest([], len(names))
        if chosen:
            if listed.status is RankStatus.OK and listed.order[0] == chosen[0]:
                return listed
            parsed = _with_the_rest(chosen, len(names))
            return Parsed(parsed.order, RankStatus.OK) if len(chosen) == len(names) else parsed
    return listed


def _chosen(text: str, names: Sequence[str]) -> list[int] | None:
    """Columns that a text names by letter, best first; `None` where it contradicts itself."""
    if alone := _ALONE.fullmatch(text):
        return _columns(alone.group(1), names)
    if _LIST.fullmatch(text):
        return _columns("".join(re.findall(r"[A-Za-z]", text)), names)
    if behind := _BEHIND.match(text):
        return _checked(behind.group(1), behind.group(2), names)
    if (glued := _GLUED.match(text)) and (_WHY.match(glued.group(2)) or _name_of(glued.group(2), names) is not None):
        # 'A dog' may be an article and a name: then the name counts.
        agreed = _checked(glued.group(1), glued.group(2), names)
        return [] if agreed is None and glued.group(1) == "A" else agreed
    if right := _RIGHT.match(text):
        return _columns(right.group(1), names)
    if text[:1] in "{[":
        return _in_json(text, names)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1:
        ends = [match.group(1) for line in (lines[0], lines[-1]) if (match := _ALONE.fullmatch(line))]
        if ends and len({letter.upper() for letter in ends}) == 1:
            return _columns(ends[0], names)
    told = list(_TOLD.finditer(text))
    last_words = [match["letter"] for match in told if match["answer"]][-1:] or [match["letter"] for match in told]
    return _columns(last_words[0], names) if len(set(last_words)) == 1 else []


def _checked(letter: str, behind: str, names: Sequence[str]) -> list[int] | None:
    """The letter's column, unless another candidate's name follows it."""
    columns, named = _columns(letter, names), _name_of(behind, names)
    return columns if named is None or set(columns) & set(named) else None


def _name_of(text: str, names: Sequence[str]) -> list[int] | None:
    """Columns of the candidate that a text begins with."""
    spellings = _spellings(tuple(names))
    start = without_article(normalise(text).lstrip(" \"'`*"))
    for name, end in spellings.at(start, 0):
        if not start[end : end + 1].isalnum():
            return spellings.columns[name]
    return None


def _in_json(text: str, names: Sequence[str]) -> list[int] | None:
    """The letter in a JSON object or list."""
    value = None
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    found = [_chosen(part.strip(), names) for part in parts if isinstance(part, str) and part.strip()[:1] not in "{["]
    chosen = [columns for columns in found if columns]
    return chosen[0] if chosen and all(columns == chosen[0] for columns in chosen) else []


def _columns(letters: str, names: Sequence[str]) -> list[int]:
    places = dict.fromkeys(ord(letter) - ord("A") for letter in letters.upper())
    return [place for place in places if 0 <= place < len(names)]


def _with_the_rest(leading: list[int], k: int) -> Parsed:
    rest = [column for column in range(k) if column not in leading]
    return Parsed((*leading, *rest), RankStatus.PARTIAL if leading else RankStatus.FALLBACK)


@lru_cache(maxsize=1024)
def _spellings(names: tuple[str, ...]) -> Spellings:
    return Spellings(names)


def _by_score(items: list[Item]) -> list[Item]:
    """Best score first, where every candidate named has one; else as listed."""
    named = [item for item in items if item.name is not None]
    values = [item.value for item in named if item.value is not None]
    if named and len(values) == len(named) and not any(values):
        return []  # 'dog - no': all are denied
    if len(named) < 2 or len(values) < len(named):
        return items
    # 'cat: 2, dog: 1' is a ranking rather than a score.
    ranks = all(item.is_rank for item in named) or sorted(values) == [float(n) for n in range(1, len(values) + 1)]
    ordered = sorted(named, key=lambda item: (item.value or 0.0) if ranks else -(item.value or 0.0))
    return ordered + [item for item in items if item.name is None]


def _assign(items: list[Item], columns: dict[str, list[int]]) -> tuple[list[int], bool]:
    """Columns in the order named, and whether the items were just that: no repeats, nothing unknown."""
    unused = {name: list(found) for name, found in columns.items()}
    order = [unused[item.name].pop(0) for item in items if item.name is not None and unused[item.name]]
    return order, len(items) == len(order)
