"""The nouns of a WordNet 3.x dictionary folder, as Princeton lays it out and Debian's wordnet-base and nltk ship it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rar_mmdet.classification.naming.spelling import spelling_key
from rar_mmdet.classification.reading import read_lines
from rar_mmdet.errors import DatasetError, MissingAssetError
from rar_mmdet.files.names import clean_name

__all__ = ["Nouns", "read_nouns"]

INDEX = "index.noun"
_PLACES = ("", "dict", "wordnet", "corpora/wordnet")  # under the folder given
_VERSION = re.compile(r"WordNet (?:Release )?(\d+)\.(\d+)")
_LICENCE_LINES = 40  # the version stands in the licence, 29 lines in front of the words
_GET = "sudo apt install wordnet-base puts it into /usr/share/wordnet; nltk.download('wordnet') into nltk_data/corpora"


@dataclass(frozen=True)
class Nouns:
    """Nouns in the order of the dictionary, and the synset of each one's most frequent sense."""

    names: tuple[str, ...]  # as people write them: blanks for the underscores
    first_senses: tuple[int, ...]  # offset into data.noun of each name's first sense
    version: str

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def sense_of(self) -> dict[str, int]:
        """Spelling key -> first sense; of several names with one key the alphabetically first counts."""
        ordered = sorted(zip(self.names, self.first_senses, strict=True), reverse=True)
        return {spelling_key(name): sense for name, sense in ordered}


def read_nouns(folder: str | Path) -> Nouns:
    """Read `index.noun`.

    Each line is a noun, in lower case with underscores, its counts and pointers, and the offsets of its synsets, the
    most frequent sense first (wndb(5WN)). Nothing else of WordNet is read: which names share a sense is in there.

    Args:
        folder: that of the file, or one above it (`dict/`, `wordnet/`, `corpora/wordnet/`).

    Raises:
        MissingAssetError: there is no index.noun.
        DatasetError: it is of another version than 3.x, says no version, or is damaged.
    """
    folder = Path(folder).expanduser()
    file = next((folder / place / INDEX for place in _PLACES if (folder / place / INDEX).is_file()), None)
    if file is None:
        raise MissingAssetError(f"there is no {INDEX} in {folder.absolute()}; {_GET}")
    lines = read_lines(file, "WordNet's nouns")
    found = next((match for line in lines[:_LICENCE_LINES] if (match := _VERSION.search(line))), None)
    if found is None or found.group(1) != "3":
        version = "no version in its first lines" if found is None else f"WordNet {found.group(1)}.{found.group(2)}"
        raise DatasetError(f"{file}: {version}; expected WordNet 3.x, whose synsets are meant here. {_GET}")
    names: list[str] = []
    senses: list[int] = []
    for line in lines:
        fields = line.split()
        if not names and fields[0].isdigit() and fields[1:2] != ["n"]:
            continue  # the licence in front: its lines are numbered
        try:
            count, pointers = int(fields[2]), int(fields[3])
            offsets = fields[6 + pointers :]
            sense = int(offsets[0])
        except (IndexError, ValueError) as error:
            raise DatasetError(f"{file}: {line[:60]!r} is no line of an index of nouns; is the file whole?") from error
        if fields[1] != "n" or len(offsets) != count:
            raise DatasetError(f"{file}: {line[:60]!r} has {len(offsets)} senses, says {count}; is the file whole?")
        names.append(clean_name(fields[0]))
        senses.append(sense)
    if not names:
        raise DatasetError(f"{file} holds no nouns")
    return Nouns(tuple(names), tuple(senses), f"{found.group(1)}.{found.group(2)}")
