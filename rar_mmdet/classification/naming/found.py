"""From guesses to a vocabulary: names that are the same are merged, rare ones dropped, and each keeps its origin."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rar_mmdet.classification.dataset import PhotoDataset
from rar_mmdet.classification.naming.discovery import Discovery
from rar_mmdet.classification.naming.spelling import is_latin, spelling_key, tidy
from rar_mmdet.classification.naming.wordnet import Nouns
from rar_mmdet.classification.reading import load_json_file
from rar_mmdet.errors import DatasetError, MissingAssetError
from rar_mmdet.files.names import shown

__all__ = ["FoundName", "FoundNames", "Merging", "merge", "read_found", "write_found"]

FORMAT = "rar_mmdet found names 1"


@dataclass(frozen=True)
class FoundName:
    """A name, and where it came from."""

    name: str
    support: int  # discovery photos with this name among their guesses
    spellings: tuple[str, ...]  # all that were merged into it
    photos: tuple[str, ...]  # ids of those photos


@dataclass(frozen=True)
class Merging:
    """When two guesses are one name, and which names stay.

    Args:
        nouns: names whose most frequent sense in WordNet is the same are one; `None`: by their spelling alone. (Only
            the first sense counts: were any shared sense enough, 'crane' would make a bird of a machine.)
        min_support: photos a name must be guessed for.
        any_script: keep names in other than Latin letters, which the usual encoders cannot read.
    """

    nouns: Nouns | None = None
    min_support: int = 1
    any_script: bool = False

    def key(self, name: str) -> str:
        """Equal for guesses of one name: an equivalence, so that merging depends on no order and is done once."""
        spelled = spelling_key(name)
        sense = None if self.nouns is None else self.nouns.sense_of.get(spelled)
        return spelled if sense is None else f"synset {sense}"


def merge(counts: Mapping[str, int], key: Callable[[str], str] = spelling_key) -> dict[str, tuple[str, ...]]:
    """Names under their most frequent spelling; of equally frequent ones the shortest, then the alphabetically first.

    Args:
        counts: name -> how often it was guessed.
        key: equal for names that are the same.

    Returns:
        name -> all its spellings. Merging the result again changes nothing, and neither does the order of `counts`.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        groups[key(name)].append(name)
    merged = {}
    for spellings in groups.values():
        best = min(spellings, key=lambda name: (-counts[name], len(name), name.casefold(), name))
        merged[best] = tuple(sorted(spellings))
    return dict(sorted(merged.items()))


@dataclass(frozen=True)
class FoundNames:
    """A found vocabulary and the guesses for each discovery photo, as places in it.

    Raises:
        DatasetError: no name is left, or guesses point outside the names.
    """

    dataset: str
    split_sha256: str
    discovery: Mapping[str, Any]  # `Discovery.describe`
    finder: Mapping[str, Any]  # its name and settings
    names: tuple[FoundName, ...]  # C, best supported first
    guesses: Mapping[str, tuple[int, ...]]  # id of each discovery photo -> places in `names`, best first; may be empty
    dropped: Mapping[str, int]  # why guesses were left out -> how many

    def __post_init__(self) -> None:
        if not self.names:
            raise DatasetError(
                f"no name was found by {self.finder.get('finder')!r} ({_told(self.dropped)}); lower --min-support, or "
                "look at the replies"
            )
        if any(not 0 <= place < len(self.names) for row in self.guesses.values() for place in row):
            raise DatasetError(f"guesses point outside the {len(self.names)} found names; is the file whole?")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The C names."""
        return tuple(one.name for one in self.names)

    @property
    def unnamed(self) -> list[str]:
        """Discovery photos without any guess."""
        return [photo for photo, row in self.guesses.items() if not row]

    @staticmethod
    def from_guesses(
        guesses: Mapping[str, Sequence[str]],
        discovery: Discovery,
        finder: Mapping[str, Any],
        merging: Merging = Merging(),
    ) -> FoundNames:
        """Clean, merge and drop.

        Args:
            guesses: id of a photo -> what was guessed, best first, as it was written; photos of the draw only.
            discovery: the draw; photos without a guess are kept as such.
            finder: what found them.
            merging: the rules.
        """
        dropped: Counter[str] = Counter()
        cleaned: dict[str, list[str]] = {}
        for photo in discovery.photos:
            row = []
            for guess in guesses.get(photo.id, ()):
                name = tidy(guess)
                if not name:
                    dropped["no name"] += 1
                elif not (is_latin(name) or merging.any_script):
                    dropped["other script"] += 1
                else:
                    row.append(name)
            cleaned[photo.id] = row
        counts = Counter(name for row in cleaned.values() for name in dict.fromkeys(row))
        merged = merge(counts, merging.key)
        name_of = {spelling: name for name, spellings in merged.items() for spelling in spellings}
        rows = {photo: list(dict.fromkeys(name_of[name] for name in row)) for photo, row in cleaned.items()}
        photos: dict[str, list[str]] = defaultdict(list)
        for identity, own in rows.items():
            for name in own:
                photos[name].append(identity)
        kept = sorted((n for n in photos if len(photos[n]) >= merging.min_support), key=lambda n: (-len(photos[n]), n))
        dropped["below the support"] += len(photos) - len(kept)
        place = {name: i for i, name in enumerate(kept)}
        found = tuple(FoundName(n, len(photos[n]), merged[n], tuple(sorted(photos[n]))) for n in kept)
        places = {photo: tuple(place[n] for n in row if n in place) for photo, row in rows.items()}
        settings = FoundNames.settings_of(finder, merging)
        counted = {reason: count for reason, count in dropped.items() if count}
        return FoundNames(
            discovery.dataset, discovery.split_sha256, discovery.describe(), settings, found, places, counted
        )

    @staticmethod
    def settings_of(finder: Mapping[str, Any], merging: Merging) -> dict[str, Any]:
        """What a file says of how its names were found (as JSON gives it back)."""
        synonyms = None if merging.nouns is None else f"WordNet {merging.nouns.version}, first senses"
        rules = {"synonyms": synonyms, "min_support": merging.min_support, "any_script": merging.any_script}
        return dict(json.loads(json.dumps({**finder, **rules})))

    def describe(self) -> str:
        """One paragraph: how many names, from what, and what is missing."""
        said = [
            f"{len(self.names)} names from {len(self.guesses)} photos by {self.finder['finder']}: "
            + shown([f"{one.name} ({one.support})" for one in self.names])
        ]
        if self.dropped:
            said.append(f"left out: {_told(self.dropped)}")
        if self.unnamed:
            said.append(f"{len(self.unnamed)} photos without a name: {shown(self.unnamed)}")
        return "\n".join(said)


def _told(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no guesses at all"


def write_found(found: FoundNames, file: Path) -> None:
    """As JSON, for `read_found`; whole or not at all."""
    content = {"format": FORMAT, **asdict(found)}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, file)


def read_found(file: str | Path, dataset: PhotoDataset) -> FoundNames:
    """A file of `write_found`.

    Args:
        file: of names.
        dataset: what it was found on.

    Raises:
        MissingAssetError: there is no such file.
        DatasetError: it is no such file, damaged, of another set or split, or its photos are not in the train part.
    """
    file = Path(file)
    if not file.is_file():
        raise MissingAssetError(f"there are no found names at {file.absolute()}; `rar-mmdet names find` writes them")
    content = load_json_file(file, "found names")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DatasetError(f"{file} holds no found names; expected a file that `rar-mmdet names find` wrote")
    try:
        found = FoundNames(
            content["dataset"],
            content["split_sha256"],
            content["discovery"],
            content["finder"],
            tuple(
                FoundName(one["name"], one["support"], tuple(one["spellings"]), tuple(one["photos"]))
                for one in content["names"]
            ),
            {photo: tuple(row) for photo, row in content["guesses"].items()},
            content["dropped"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} is damaged: {error!r}") from error
    if (found.dataset, found.split_sha256) != (dataset.name, dataset.split_sha256):
        raise DatasetError(
            f"{file} was found on {found.dataset} (split {found.split_sha256[:12]}), the config's set is "
            f"{dataset.name} (split {dataset.split_sha256[:12]}); find names on it first"
        )
    known = {example.id for example in dataset.train}
    strangers = [photo for photo in found.guesses if photo not in known]
    if strangers:
        raise DatasetError(
            f"{file}: {len(strangers)} photos are not in the train part of {dataset.name}, such as {strangers[0]!r}"
        )
    return found
