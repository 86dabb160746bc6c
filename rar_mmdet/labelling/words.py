"""The words to label with: one a line, with synonyms, a taxonomy, and words that compete but are never written.

    cat | kitten | tomcat          several phrases, one class: its score is the sum of theirs
    dog > poodle                   a taxonomy; where the breed is unsure the label may be "dog"
    animal
        horse                      the same by indent
    ! shadow                       competes, and is never written
    gasket A17 @ photos/a17        looks like the photos of that folder, beside what its name says
    # a remark

The same as YAML or CSV. Phrases are what a recogniser looks for; classes are what labels say.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rar_mmdet.errors import VocabularyError
from rar_mmdet.files.names import cleaned, counted, did_you_mean
from rar_mmdet.files.text import decode_text, read_bytes

__all__ = ["NEVER_WRITTEN", "NO_PARENT", "WordList", "read_words"]

NO_PARENT = -1
NEVER_WRITTEN = -1  # class of a phrase that competes and is never written
SUFFIXES = (".txt", ".yaml", ".yml", ".csv")


@dataclass(frozen=True)
class WordList:
    """P phrases to look for and C classes that labels may have.

    Raises:
        VocabularyError: nothing to write, a phrase twice, or a taxonomy that runs in a circle.
    """

    classes: tuple[str, ...]  # C, in the order they were first named
    parents: tuple[int, ...]  # C: the class above, or NO_PARENT
    phrases: tuple[str, ...]  # P
    class_of: tuple[int, ...]  # P: class of each phrase, or NEVER_WRITTEN
    origin: str = "words"  # what messages call them
    exemplars: tuple[tuple[int, Path], ...] = ()  # classes with folders of photos of them

    def __post_init__(self) -> None:
        if not any(c != NEVER_WRITTEN for c in self.class_of):
            raise VocabularyError(f"{self.origin} hold no word that may be written; give at least one")
        seen: dict[str, str] = {}
        for phrase in self.phrases:
            other = seen.setdefault(cleaned(phrase).casefold(), phrase)
            if other is not phrase:
                raise VocabularyError(f"{self.origin}: {phrase!r} is there twice; each word may be given once")
        for row in range(len(self.classes)):
            self.ancestors(row)

    def ancestors(self, row: int) -> tuple[int, ...]:
        """A class and those above it, nearest first.

        Raises:
            VocabularyError: they run in a circle.
        """
        chain = [row]
        while (parent := self.parents[chain[-1]]) != NO_PARENT:
            if parent in chain:
                around = " > ".join(self.classes[c] for c in [*reversed(chain), chain[-1]])
                raise VocabularyError(f"{self.origin}: the taxonomy runs in a circle: {around}")
            chain.append(parent)
        return tuple(chain)

    def describe(self) -> str:
        """How many words of which kind, for people."""
        above = len(set(self.parents) - {NO_PARENT})
        never = self.class_of.count(NEVER_WRITTEN)
        said = [counted(len(self.classes), "class", "classes"), counted(len(self.phrases) - never, "phrase")]
        if len(self.phrases) == 1 and "," in self.phrases[0]:  # in a longer list it is a name such as "boxer, brown"
            said[-1] += f" ({self.phrases[0]!r}: a comma parts no words, write one a line)"
        elif len(self.phrases) == 1:
            said[-1] += " (nothing competes with it, so every box gets it: add what else is there, '! thing' unwritten)"
        if above:
            said.append(f"{above} of the classes above others")
        if never:
            said.append(counted(never, "word that is never written", "words that are never written"))
        if self.exemplars:
            said.append(f"{counted(len(self.exemplars), 'class', 'classes')} with exemplar photos")
        return ", ".join(said)

    def phrase_of(self, row: int) -> int | None:
        """The first phrase of a class; nothing where a class above others has none of its own."""
        return self.class_of.index(row) if row in self.class_of else None

    @property
    def is_flat(self) -> bool:
        """Whether no class is above another."""
        return all(parent == NO_PARENT for parent in self.parents)


@dataclass
class _Builder:
    """Collects classes and phrases in the order they are named."""

    origin: str
    folder: Path | None = None  # what paths of exemplars start from; none: the words are in no file
    parents: dict[str, str | None] = field(default_factory=dict)  # class -> the one above
    shown: dict[str, str] = field(default_factory=dict)  # how a class was first written
    phrases: list[tuple[str, str | None]] = field(default_factory=list)  # (phrase, its class; None: never written)
    exemplars: list[tuple[str, Path]] = field(default_factory=list)  # (class, folder)
    places: dict[str, str] = field(default_factory=dict)  # phrase, as it is compared -> where it stands

    def add_class(self, name: str, parent: str | None, where: str) -> str:
        key = cleaned(name).casefold()
        if not key:
            raise VocabularyError(f"{where}: {name!r} has nothing to read in it")
        self.shown.setdefault(key, " ".join(name.split()))
        above = None if parent is None else cleaned(parent).casefold()
        if above is not None and self.parents.get(key) not in (None, above):
            raise VocabularyError(
                f"{where}: {name!r} stands below {parent!r} here and below "
                f"{self.shown[self.parents[key] or '']!r} elsewhere; a word has one place"
            )
        self.parents[key] = above or self.parents.get(key)
        return key

    def add(self, names: Sequence[str], parent: str | None, where: str) -> str:
        """A class with its phrases, the first of which is its name."""
        key = self.add_class(names[0], parent, where)
        for phrase in names:
            if not cleaned(phrase):
                raise VocabularyError(f"{where}: a synonym of {names[0]!r} is empty")
            self._add_phrase(phrase, key, where)
        return key

    def _add_phrase(self, phrase: str, key: str | None, where: str) -> None:
        read = cleaned(phrase).casefold()
        if read in self.places:
            first = self.places[read].removeprefix(f"{self.origin}, ")
            raise VocabularyError(f"{where}: {phrase!r} is there twice, first in {first}; each word may be given once")
        self.places[read] = where
        self.phrases.append((" ".join(phrase.split()), key))

    def add_exemplars(self, key: str, folder: str, where: str) -> None:
        """A folder of photos of a class."""
        if self.folder is None:  # they may come from a browser, which is not to look into folders here
            raise VocabularyError(f"{where}: exemplar photos ({self.shown[key]!r} @ ...) need words in a file")
        place = self.folder / Path(folder.strip()).expanduser()
        if not folder.strip() or not place.is_dir():
            raise VocabularyError(
                f"{where}: the exemplars of {self.shown[key]!r} should be a folder of photos; there is none at {place}"
            )
        self.exemplars.append((key, place))

    def never(self, names: Sequence[str], where: str) -> None:
        for phrase in names:
            if not cleaned(phrase):
                raise VocabularyError(f"{where}: a word that is never written is empty")
            self._add_phrase(phrase, None, where)

    def build(self) -> WordList:
        # A class above others that was not listed by itself is no phrase: it is only what is said when unsure.
        rows = {key: row for row, key in enumerate(self.parents)}
        return WordList(
            classes=tuple(self.shown[key] for key in rows),
            parents=tuple(NO_PARENT if above is None else rows[above] for above in self.parents.values()),
            phrases=tuple(phrase for phrase, _ in self.phrases),
            class_of=tuple(NEVER_WRITTEN if key is None else rows[key] for _, key in self.phrases),
            origin=self.origin,
            exemplars=tuple((rows[key], place) for key, place in self.exemplars),
        )


def read_words(source: str | os.PathLike[str] | Iterable[str]) -> WordList:
    """Words of a .txt, .yaml or .csv file, or lines as a .txt file has them.

    YAML: a list of words, or a mapping of words to lists of synonyms, with `never` for words that are never written;
    keys `words`, `never`, `above` (word: the word above it) and `exemplars` (word: a folder of photos of it). CSV:
    columns `word`, and if wanted `synonyms` (with bars between), `above`, `never` (yes or no), `exemplars`. Folders
    start from the file's.

    Raises:
        MissingAssetError: there is no such file.
        VocabularyError: it holds no words, or is not as described; line and word are named.
    """
    if not isinstance(source, str | os.PathLike):
        return _of_lines(list(source), "words (a list)", None)
    path = Path(source)
    origin = f"words {str(path)!r}"
    if path.suffix.lower() not in SUFFIXES:
        raise VocabularyError(
            f"{origin} end in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}"
            f"{did_you_mean(path.suffix, SUFFIXES)}"
        )
    text = decode_text(read_bytes(str(path), origin, VocabularyError), origin, VocabularyError)
    if path.suffix.lower() == ".csv":
        return _of_csv(text, origin, path.parent)
    if path.suffix.lower() == ".txt":
        return _of_lines(text.splitlines(), origin, path.parent)
    return _of_yaml(text, origin, path.parent)


def _of_lines(lines: Sequence[str], origin: str, folder: Path | None) -> WordList:
    builder = _Builder(origin, folder)
    above: list[tuple[int, str]] = []  # (indent, class) of the lines that this one may stand below
    # The last line, until it is known to be a leaf: names, the class above, where, indent, folder of exemplars.
    pending: tuple[list[str], str | None, str, int, str | None] | None = None

    def settle(next_indent: int) -> None:
        """A line with deeper ones below it is a class above them and no phrase."""
        nonlocal pending
        if pending is None:
            return
        names, parent, where, indent, photos = pending
        if next_indent > indent and len(names) == 1 and photos is None:
            builder.add_class(names[0], parent, where)
        else:
            key = builder.add(names, parent, where)
            if photos is not None:
                builder.add_exemplars(key, photos, where)
        pending = None

    for number, line in enumerate(lines, 1):
        if not isinstance(line, str):
            raise VocabularyError(f"{origin}: entry {number - 1} is {line!r}, expected a word as text")
        expanded = line.expandtabs(4)
        text = expanded.strip()
        if not text or text.startswith("#"):
            continue
        where, indent = f"{origin}, line {number}", len(expanded) - len(expanded.lstrip())
        settle(indent)
        while above and above[-1][0] >= indent:
            above.pop()
        if text.startswith("!"):
            builder.never(_phrases(text[1:]), where)
            continue
        text, *photos = re.split(r"\s@(?:\s|$)", text, maxsplit=1)
        *path, last = (part.strip() for part in re.split(r"\s>(?:\s|$)", text))  # "a>b" is a name
        parent = above[-1][1] if above else None
        for name in path:
            builder.add_class(name, parent, where)
            parent = name
        names = _phrases(last)
        if not cleaned(names[0]):
            raise VocabularyError(f"{where}: {line.strip()!r} has no word behind the last '>'")
        pending = names, parent, where, indent, photos[0] if photos else None
        above.append((indent, names[0]))
    settle(-1)
    return builder.build()


def _phrases(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


def _of_yaml(text: str, origin: str, folder: Path) -> WordList:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise VocabularyError(f"{origin} are not YAML: {error}") from error
    if isinstance(content, list) or (isinstance(content, Mapping) and "words" not in content):
        content = {"words": content}
    if not isinstance(content, Mapping) or not content.get("words"):
        raise VocabularyError(f"{origin} hold no words; expected a list of words, or a mapping with a list `words`")
    known = ("words", "never", "above", "exemplars")
    odd = sorted(set(map(str, content)) - set(known))
    if odd:
        raise VocabularyError(f"{origin}: unknown key {odd[0]!r}; known are {', '.join(known)}")
    above = content.get("above") or {}
    if not isinstance(above, Mapping):
        raise VocabularyError(f"{origin}: `above` must be a mapping, word: the word above it")
    photos = content.get("exemplars") or {}
    if not isinstance(photos, Mapping):
        raise VocabularyError(f"{origin}: `exemplars` must be a mapping, word: a folder of photos of it")
    parents = {cleaned(str(word)).casefold(): str(parent) for word, parent in above.items()}
    words = content["words"]
    entries = words.items() if isinstance(words, Mapping) else ((word, None) for word in words)
    builder = _Builder(origin, folder)
    listed: set[str] = set()
    for word, synonyms in entries:
        if isinstance(word, Mapping):  # - cat: [kitten]
            if len(word) != 1:
                raise VocabularyError(f"{origin}: {word!r} should be one word with its synonyms")
            word, synonyms = next(iter(word.items()))
        others = [] if synonyms is None else [synonyms] if isinstance(synonyms, str) else synonyms
        if not isinstance(word, str) or not isinstance(others, list) or not all(isinstance(o, str) for o in others):
            raise VocabularyError(
                f"{origin}: {word!r}: {synonyms!r} should be a word and a list of synonyms, as texts. YAML reads yes, "
                "no and numbers as other things: put them into quotes"
            )
        listed.add(cleaned(word).casefold())
        builder.add([word, *others], parents.get(cleaned(word).casefold()), f"{origin}, word {word!r}")
    for key, parent in parents.items():
        builder.add_class(parent, None, origin)
        if key not in builder.parents:
            raise VocabularyError(f"{origin}: `above` names {key!r}, which is not among the words")
    for word, parent in above.items():  # classes above that are themselves below others
        builder.add_class(str(word), str(parent), origin)
    for word, place in photos.items():
        key = cleaned(str(word)).casefold()
        if key not in builder.parents:
            raise VocabularyError(f"{origin}: `exemplars` names {str(word)!r}, which is not among the words")
        builder.add_exemplars(key, str(place), f"{origin}, exemplars")
    builder.never([str(word) for word in content.get("never") or []], f"{origin}, never")
    return builder.build()


def _of_csv(text: str, origin: str, folder: Path) -> WordList:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = [name.strip().lower() for name in rows.fieldnames or []]
    if "word" not in columns:
        raise VocabularyError(f"{origin} have the columns {', '.join(columns) or 'none'}; expected one called word")
    builder = _Builder(origin, folder)
    for number, row in enumerate(rows, 2):
        cells: dict[str, Any] = {str(key).strip().lower(): (value or "") for key, value in row.items() if key}
        where = f"{origin}, line {number}"
        names = [cells["word"], *filter(None, _phrases(cells.get("synonyms", "")))]
        if cells.get("never", "").strip().lower() in ("1", "yes", "true", "x"):
            builder.never(names, where)
        else:
            parent = cells.get("above", "").strip() or None
            if parent is not None and cleaned(parent).casefold() not in builder.parents:
                builder.add_class(parent, None, where)
            key = builder.add(names, parent, where)
            if cells.get("exemplars", "").strip():
                builder.add_exemplars(key, cells["exemplars"], where)
    return builder.build()
