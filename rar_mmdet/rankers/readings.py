"""Ways to read a model's text as a list of items, each one candidate or something unknown.

A candidate counts as named only where an *item* is that name and nothing else but marks, a score or a reason: 'polar
bear' does not name 'bear'. Text is scanned with the candidates in hand, so names with apostrophes, commas or brackets
need no escaping. Nothing is ever evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from rar_mmdet.rankers.spelling import Spellings, normalise

__all__ = ["ANSWER_WORDS", "Item", "final_part", "readings"]

# They keep the reading short for a model that babbles: places tried of each kind, and items of a list.
_MOST_TRIES, _MOST_LEADS, _MOST_ITEMS = 16, 6, 128
_LARGEST_SCORE = 1e9
_DEEPEST = 4  # JSON inside JSON
_MAX_CHARS = 8_192  # more than any list needs

# 'Answer:' as models of several languages write it; also headings such as 'Ranking:'.
ANSWER_WORDS = (
    r"(?:the )?(?:my )?(?:(?:final|correct|best|right|predicted|sorted|most likely) ){0,2}"
    r"(?:answers?|ranking|order|result|output|response|prediction|categor(?:y|ies)|class(?:es)?|labels?|objects?|options?"
    r"|choices?|list|match|guess|conclusion|antwort(?:en)?|r[ée]ponses?|respuestas?|rispost[ae]|respostas?|antwoord|svar|vastaus"
    r"|odpowied[źz]|odpověď|cevap|yanıt|răspuns|válasz|απάντηση|ответы?|відповідь|الإجابة|الجواب|उत्तर|คำตอบ|jawaban"
    r"|đáp án|trả lời|答案|回答|答え|答|答案是|结果|結果|类别|類別|排序|排名|正解|정답|답변|답)"
)
_THOUGHTS = r"think|thinking|thought|thoughts|reasoning|reason|analysis|seed:think"
_THOUGHT_ENDS = re.compile(rf"</(?:{_THOUGHTS})>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(rf"<(?:{_THOUGHTS})>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>", re.IGNORECASE)
_FRAMED = re.compile(
    r"<(answer|result|ranking|output|final|final_answer|response)>(.*?)(?:</\1>|$)"
    r"|<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)",
    re.IGNORECASE | re.DOTALL,
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}?")
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$", re.MULTILINE)
_SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn|end_of_utterance)>")
_TAG = re.compile(r"</?[a-zA-Z][\w-]*>")

_BULLET = re.compile(
    r"(?:\(?\d{1,3}[.):\]](?!\d)|\(?[a-z][.)](?=\s)|[-*•●○◦▪■·‣⁃–+>#✓✔☑→➤]+(?!\w)|#?\d{1,2}(?=\s)"
    r"|(?:rank|top|no\.?|number|place|choice|option|category|candidate)? ?#?(?:\d{1,2}|\b[a-z]) ?[:.)=-]+"
    r"|(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last(?:ly)?|finally"
    r"|\d{1,2}(?:st|nd|rd|th|位|名)|第[\d一二三四五六七八九十]{1,3}[位名]?) ?[:,.)-]?) ?"
)
_CONNECTOR = re.compile(r"(?:and then|and|then|followed by|finally|lastly|or|&|y|et|und|e)\s+")
_OPENED = re.compile(r"[\"'`*~]+ ?| ")
_ARTICLE = re.compile(r"(?:the|an?)\s")
_CLOSED = re.compile(r" ?[\"'`*~]* ?[.!]?[\"'`*~]* ?")
_WORD = r"(?:confidence|conf|score|probability|prob|p|similarity|likelihood|certainty|match|rank|with|at|about|approx)"
_BEFORE = re.compile(r"(?P<value>\d{1,3}(?:\.\d+)?) ?(?P<unit>%) ?[:)-]* ?")
_SCORE = re.compile(
    rf" ?(?:[:=~≈|]|-{{1,3}}>?)? ?[(\[]? ?(?:an? )?(?:{_WORD} ?(?:(?:score|level|of|is) ?)?){{0,3}}[:=~≈#]? ?"
    r"(?P<value>\d{1,4}(?:\.\d+)?|\.\d+) ?(?P<unit>%|percent|/ ?\d+(?:\.\d+)?|st|nd|rd|th|points?|分|位|名)? ?[)\]]?"
)
_SAID = re.compile(r" ?(?:[:=|]|-{1,3}>?)? ?[(\[]? ?(?P<word>yes|true|no|false)\b ?[)\]]?")
_REASON = re.compile(r" ?(?:[-:(]|because\b|since\b|due to\b|as (?:it|the)\b|is (?:the )?most\b)[^\n]*")
_NAY = re.compile(r" ?[-:(]{1,3} ?(?:not?\b|none\b|unlikely|absent|cannot|不|没)")
_TUPLE = re.compile(r"\W*?\(")  # only where the reply begins: later ones are asides, 'a wolf (not a dog, cat)'
_SEPARATOR = re.compile(r"[-=]{0,3}>|[,;|→⇒≻\n]|(?<=\s)[/·](?=\s)")
_IN_LIST = re.compile(rf"{_SEPARATOR.pattern}|\]")
_IN_BRACES = re.compile(rf"{_SEPARATOR.pattern}|\}}")
_IN_TUPLE = re.compile(rf"{_SEPARATOR.pattern}|\)")
_LINE = re.compile(r"\n")
_NEXT_NUMBER = re.compile(r"[,;]? ?\(?\d{1,2}[.):](?!\d) ?|\n")
_LEAD = re.compile(rf"(?:{ANSWER_WORDS} ?(?:is:?|are|ist|est|es|è|é|は|是|为|為|:|=)|:)\s?", re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?:^|\b(?:is|are|be|as|like|shows|depicts|contains|answer|category|object|probably|likely|ist|est|es|una?|eine?)\b"
    r"|是|为|は)[\s:]{0,3}(?:(?:an?|the|most likely|probably|likely) ){0,3}[\"'`*]{0,4}",
)
_SENTENCE_END = re.compile(r"[\"'`*]{0,4} ?(?:[.!\n]|$)")
_NEGATION = re.compile(
    r"\b(?:no|not|cannot|none|neither|nor|without|unable|nicht|kein\w*|pas|aucun\w*|ning\w*)\b|n't\b|不|没|没有|ない"
)
_MARKED = re.compile(r"\*\*([^*\n]{1,200})\*\*|\"([^\"\n]{1,200})\"|`([^`\n]{1,200})`")
_NUMBER = re.compile(r"\s*(?P<value>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>%|percent|/\s*\d+(?:\.\d+)?|st|nd|rd|th)?\s*")
_NAME_KEYS = ("name", "category", "label", "class", "object", "answer", "option", "candidate", "choice", "item", "text")
_RANK_KEYS = ("rank", "position", "order", "place", "index", "ranking")
_RANK_UNITS = ("st", "nd", "rd", "th", "位", "名")


class Item(NamedTuple):
    """One entry of a list."""

    name: str | None  # a candidate; None: something that is none
    value: float | None = None  # a score beside it, or a rank
    is_rank: bool = False  # 1 is best; else the largest value is


def final_part(reply: str) -> list[str]:
    """What a reply says in the end, best first: inside its answer tags, then all of it behind its thoughts.

    Thoughts cut short say nothing: they list candidates that are then rejected.
    """
    ends = list(_THOUGHT_ENDS.finditer(reply))
    text = reply[ends[-1].end() :] if ends else reply
    begun = _THOUGHT_BEGINS.search(text)
    text = (text[: begun.start()] if begun else text)[:_MAX_CHARS]
    framed = [next(part for part in match.groups()[1:] if part is not None) for match in _FRAMED.finditer(text)]
    parts = [*_BOXED.findall(text)[-1:], *framed[-1:], text]
    bare = [_SPECIAL.sub(" ", _FENCE.sub("", _LATEX.sub(r"\1", part))).strip().strip("$") for part in parts]
    bare = [re.sub(r"\n\s+", "\n", part) for part in bare]
    return list(dict.fromkeys(part for part in bare if part))


def readings(text: str, names: Spellings) -> Iterator[list[Item]]:
    """Ways to read a text as items, most literal first."""
    yield from islice(_json_readings(text, names), _MOST_TRIES)
    text = normalise(text)
    for opening, separator in (("[", _IN_LIST), ("{", _IN_BRACES)):
        for bracket in islice(re.finditer(re.escape(opening), text), _MOST_TRIES):
            yield _scan(text, bracket.end(), names, separator)
    if text.startswith("[") and text.endswith("]") and text.count("[") == 1:
        return  # a list and nothing else: no other reading finds more
    if opened := _TUPLE.match(text):
        yield _scan(text, opened.end(), names, _IN_TUPLE)
    yield _scan(text, 0, names, _SEPARATOR)
    yield _lines(text, names)
    if _NEXT_NUMBER.search(text):
        yield _scan(text, 0, names, _NEXT_NUMBER)
    if _TAG.search(text):
        yield _lines(_TAG.sub("\n", text), names)
    # The last first: what stands before it may repeat the question. A bare colon behind a denial introduces no answer.
    for lead in reversed(list(_LEAD.finditer(text))[-_MOST_LEADS:]):
        if lead.group().strip() != ":" or not _NEGATION.search(text, 0, lead.start()):
            yield _scan(text, lead.end(), names, _SEPARATOR)
            yield _lines(text[lead.end() :], names)
            yield _scan(text, lead.end(), names, _NEXT_NUMBER)
    yield _sentence(text, names)


def _scan(text: str, position: int, names: Spellings, separator: re.Pattern[str]) -> list[Item]:
    """Read items until a closing bracket that is a `separator`, or the end."""
    items: list[Item] = []
    while position < len(text) and len(items) < _MOST_ITEMS:
        while position < len(text) and text[position].isspace():
            position += 1
        found = _item_at(text, position, names, separator)
        if found is not None:
            items.append(found[0])
            position = found[1]
        else:
            end = separator.search(text, position)
            stop = end.start() if end else len(text)
            if text[position:stop].strip(" \"'`.*"):
                items.append(Item(None))
            position = stop
        passed = separator.match(text, position)
        if passed is None or passed.group() in ("]", ")", "}"):
            break
        position = max(passed.end(), position + 1)
    return items


def _item_at(
    text: str, position: int, names: Spellings, separator: re.Pattern[str], reasons: bool = False
) -> tuple[Item, int] | None:
    """The longest candidate that is the whole item at `position`, and where the item's separator stands."""
    starts, before = [position], _BEFORE.match(text, position)
    for mark in (_BEFORE, _BULLET, _CONNECTOR, _OPENED, _ARTICLE, _OPENED):
        starts += [match.end() for start in starts if (match := mark.match(text, start))]
    for start in dict.fromkeys(starts):
        for name, end in names.at(text, start):
            if (found := _tail(text, end, separator, reasons)) is not None:
                value, is_rank, stop = found
                if value is None and before is not None:
                    value, is_rank = _value(before)
                return Item(name, value, is_rank), stop
    return None


def _tail(text: str, end: int, separator: re.Pattern[str], reasons: bool) -> tuple[float | None, bool, int] | None:
    """What may follow a name within its item: marks, a score and, where `reasons` are read, anything else."""

    def stop_at(place: int) -> int | None:
        closed = _CLOSED.match(text, place)
        place = closed.end() if closed else place
        return place if place == len(text) or separator.match(text, place) else None

    def reason_at(place: int) -> int | None:
        closed = _CLOSED.match(text, place)
        reason = _REASON.match(text, closed.end() if closed else place)
        return reason.end() if reason else None

    if (stop := stop_at(end)) is not None:
        return None, False, stop
    closed = _CLOSED.match(text, end)
    for place in dict.fromkeys((end, closed.end() if closed else end)):
        for pattern in (_SCORE, _SAID):
            score = pattern.match(text, place)
            if score is None:
                continue
            stop = stop_at(score.end())
            if stop is None and reasons:
                stop = reason_at(score.end())
            if stop is not None:
                return *_value(score), stop
    if reasons and not _NAY.match(text, end):
        stop = reason_at(end)
        return None if stop is None else (None, False, stop)
    return None


def _value(match: re.Match[str]) -> tuple[float, bool]:
    """The number of a score, and whether it is a rank."""
    groups = match.groupdict()
    if word := groups.get("word"):
        return float(word in ("yes", "true")), False
    return float(groups["value"]), groups.get("unit") in _RANK_UNITS


def _lines(text: str, names: Spellings) -> list[Item]:
    """One item a line: with a number, a mark, a score or a reason, or as the row of a table."""
    items: list[Item] = []
    for line in islice(text.split("\n"), _MOST_ITEMS):
        line = line.strip()
        if line.startswith("|") and line.count("|") > 1:
            row = _table_row(line, names)
            if row is not None or (items and line.strip("|-: ")):  # rules and headings are no items
                items.append(row or Item(None))
            continue
        if not line.strip(" \"'`.*-=#"):
            continue
        found = _item_at(line, 0, names, _LINE, reasons=True)
        items.append(found[0] if found and found[1] == len(line) else Item(None))
    return items


def _table_row(line: str, names: Spellings) -> Item | None:
    """The candidate of a Markdown row, with the number behind it."""
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    for place, cell in enumerate(cells):
        if (name := names.whole(cell)) is not None:
            behind = [match for other in cells[place + 1 :] if (match := _NUMBER.fullmatch(other))]
            return Item(name, *_value(behind[0])) if behind else Item(name)
    return None


def _sentence(text: str, names: Spellings) -> list[Item]:
    """'The object is a cat.', or one that stands out as **cat**: nothing where something is denied."""
    if _NEGATION.search(text):
        return []
    marked = [names.whole(next(filter(None, match.groups()))) for match in islice(_MARKED.finditer(text), _MOST_TRIES)]
    marked = list(dict.fromkeys(name for name in marked if name))
    for lead in islice(_SENTENCE.finditer(text), 4 * _MOST_TRIES):
        for name, end in names.at(text, lead.end()):
            if _SENTENCE_END.match(text, end) and (not marked or name in marked):
                return [Item(name), Item(None)]
    return [Item(marked[0]), Item(None)] if len(marked) == 1 else []


def _json_readings(text: str, names: Spellings) -> Iterator[list[Item]]:
    """Items of the JSON values in a text, wherever they begin; several objects in a row are one list."""
    decoder, position, objects = json.JSONDecoder(strict=False), 0, []
    for _ in range(_MOST_TRIES):
        opened = re.compile(r"[\[{]").search(text, position)
        if opened is None:
            break
        position = opened.end()
        with suppress(ValueError, RecursionError):
            value, position = decoder.raw_decode(text, opened.start())
            if isinstance(value, dict):
                objects.append(value)
            yield from (items for items in _items_of(value, names, 0) if items)
    if len(objects) > 1:
        yield from (items for items in _items_of(objects, names, 0) if items)


def _items_of(value: Any, names: Spellings, depth: int) -> Iterator[list[Item]]:
    """Readings of one JSON value."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        yield [_entry(entry, names) for entry in value if entry not in ("", None)]
        parts = value
    elif isinstance(value, dict):
        yield _pairs(value, names)
        parts = list(value.values())
    else:
        return
    for part in islice(parts, _MOST_TRIES):
        yield from _items_of(part, names, depth + 1)


def _entry(entry: Any, names: Spellings) -> Item:
    """One entry of a JSON list: a name, an object about one, or a name with its score."""
    if isinstance(entry, str):
        found = _item_at(line := normalise(entry.replace("\n", " ")), 0, names, _LINE, reasons=True)
        return found[0] if found and found[1] == len(line) else Item(_whole(entry, names))
    if isinstance(entry, dict):
        by_key = sorted(entry.items(), key=lambda pair: str(pair[0]).lower() not in _NAME_KEYS)
        named = next((name for _, value in by_key if (name := _whole(value, names))), None)
        if named is None:
            return next(iter(_pairs(entry, names)), Item(None))
        numbers = {str(key).lower(): number for key, value in entry.items() if (number := _number(value)) is not None}
        ranks = [value for key, value in numbers.items() if key in _RANK_KEYS]
        scores = [value for key, value in numbers.items() if key not in _RANK_KEYS]
        if ranks:
            return Item(named, ranks[0], is_rank=True)
        return Item(named, scores[0] if scores else None)
    if isinstance(entry, list) and entry and (named := _whole(entry[0], names)):
        return Item(named, _number(entry[1]) if len(entry) > 1 else None)
    return Item(None)


def _pairs(value: dict[Any, Any], names: Spellings) -> list[Item]:
    """An object whose keys are the names, or whose values are (behind a rank, or beside a reason)."""
    if any(_whole(key, names) for key in value):
        return [Item(_whole(key, names), _number(part)) for key, part in value.items()]
    if not any(_whole(part, names) for part in value.values()):
        return []
    ranked = sorted(value.items(), key=lambda pair: int(pair[0])) if all(map(str.isdecimal, value)) else value.items()
    return [Item(_whole(part, names)) for _, part in ranked]


def _whole(value: Any, names: Spellings) -> str | None:
    return names.whole(normalise(value.replace("\n", " "))) if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """A score as JSON has it: a number, '90 %', true, or an object with one of these."""
    if isinstance(value, (bool, int, float)):
        return float(value) if abs(value) <= _LARGEST_SCORE else None  # NaN and infinities are none either
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
        return float(match["value"])
    if isinstance(value, dict):
        return next((number for part in value.values() if (number := _number(part)) is not None), None)
    return None
