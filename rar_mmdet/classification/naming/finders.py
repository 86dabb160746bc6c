"""Name finders that ask no language model: nouns of a dictionary, words of captions, and files of others' guesses."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from rar_mmdet.classification.naming.discovery import DiscoveryPhoto, photo_key, photos_by_id
from rar_mmdet.classification.naming.spelling import spelling_key
from rar_mmdet.classification.naming.wordnet import Nouns
from rar_mmdet.classification.reading import load_json_file, read_lines
from rar_mmdet.classification.vectors import PhotoVectors, encode_names
from rar_mmdet.encoders.base import Encoder
from rar_mmdet.errors import DatasetError, MissingAssetError
from rar_mmdet.rankers.spelling import normalise, singular, without_article

__all__ = [
    "CaptionFinder",
    "Captions",
    "GuessedFinder",
    "NameFinder",
    "WordNetFinder",
    "nearest_names",
    "read_captions",
    "write_captions",
]

GUESSES = 3  # names for each photo, as FineR's language model gives


class NameFinder(Protocol):
    """Guesses the names of photos. It sees photos of one draw: no label, no list of classes, no photo of the test part.

    A finder of yours needs these members and no others.
    """

    name: str

    def find(self, photos: Sequence[DiscoveryPhoto]) -> Mapping[str, Sequence[str]]:
        """Id of each photo -> guesses as they came, best first; a photo may have none."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What changes a guess (JSON types)."""
        ...


def nearest_names(photos: Tensor, names: Sequence[str], text: Tensor, depth: int) -> list[list[str]]:
    """The `depth` nearest names of each of (N, D) unit vectors, best first; `text` is (D, C) unit columns."""
    best = (photos @ text).topk(min(depth, len(names)), dim=1).indices.tolist()
    return [[names[i] for i in row] for row in best]


class WordNetFinder:
    """The nouns nearest to a photo (vic's baseline takes the ten nearest of all WordNet, for each test photo).

    Args:
        nouns: of `read_nouns`.
        photos: vectors of photos.
        templates: texts with {} for the noun.
        guesses: nouns for each photo.
        cache_dir: where vectors of the nouns are kept.
    """

    name = "wordnet"

    def __init__(
        self,
        nouns: Nouns,
        photos: PhotoVectors,
        *,
        templates: Sequence[str],
        guesses: int = GUESSES,
        cache_dir: Path | None = None,
    ) -> None:
        self.nouns, self.photos, self.guesses = nouns, photos, guesses
        self.templates, self.cache_dir = tuple(templates), cache_dir

    def find(self, photos: Sequence[DiscoveryPhoto]) -> Mapping[str, Sequence[str]]:
        """See `NameFinder`."""
        text = encode_names(self.photos.encoder, self.nouns.names, self.templates, self.cache_dir)
        found = nearest_names(self.photos(photos), self.nouns.names, text, self.guesses)
        return {photo.id: row for photo, row in zip(photos, found, strict=True)}

    def settings(self) -> Mapping[str, Any]:
        """See `NameFinder`."""
        return {
            "wordnet": self.nouns.version,
            "nouns": len(self.nouns),
            "templates": list(self.templates),
            "encoder": self.photos.encoder.fingerprint,
            "guesses": self.guesses,
        }


# --- Captions


class Captions:
    """Texts and their vectors by one encoder."""

    def __init__(self, texts: Sequence[str], vectors: Tensor) -> None:
        self.texts, self.vectors = tuple(texts), vectors  # N texts, (N, D) unit vectors

    def __len__(self) -> int:
        return len(self.texts)


def write_captions(texts_file: Path, encoder: Encoder, file: Path) -> int:
    """Encode the lines of a text file into `file` (.safetensors), for `read_captions`; how many there are."""
    texts = read_lines(texts_file, "captions")
    if not texts:
        raise DatasetError(f"{texts_file} holds no captions; expected one a line")
    vectors = encode_names(encoder, texts, ["{}"], None).T.contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    save_file({"vectors": vectors}, part, {"encoder": encoder.fingerprint, "captions": json.dumps(texts)})
    os.replace(part, file)
    return len(texts)


def read_captions(file: str | Path, encoder: Encoder) -> Captions:
    """A file of `write_captions`.

    Raises:
        MissingAssetError: there is no such file.
        DatasetError: it is damaged, or its vectors are of another encoder.
    """
    file = Path(file)
    make = f"rar-mmdet names captions CONFIG captions.txt --out {file.name}"
    if not file.is_file():
        raise MissingAssetError(f"there are no captions at {file.absolute()}; make them: {make}")
    try:
        with safe_open(file, "pt") as content:
            told, vectors = content.metadata() or {}, content.get_tensor("vectors")
            texts = json.loads(told["captions"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DatasetError(f"{file} is no file of captions: {error}; make it: {make}") from error
    if told.get("encoder") != encoder.fingerprint:
        raise DatasetError(
            f"the captions in {file} were encoded by {told.get('encoder')}, the config's encoder is "
            f"{encoder.fingerprint}; vectors of two encoders cannot be compared. Make them again: {make}"
        )
    if len(texts) != len(vectors):
        raise DatasetError(f"{file} has {len(texts)} captions and {len(vectors)} vectors; is the file whole?")
    return Captions(texts, vectors)


class CaptionFinder:
    """Words of the captions nearest to a photo, the best by image and captions together: CaSED's idea.

    A word's score is 0.7 x its cosine with the photo + 0.3 x that with the mean of the nearest captions (CaSED, Conti
    et al., NeurIPS 2023: weights and number of captions). Which words are candidates is ours: single words of at least
    three letters, in singular, that are no stop words; with a dictionary only its nouns, and those of two words too.

    Args:
        captions: of `read_captions`.
        photos: vectors of photos, by the same encoder.
        templates: texts with {} for a word.
        nouns: the dictionary, or `None`.
        nearest: captions for each photo.
        guesses: words for each photo.
    """

    name = "captions"
    IMAGE_WEIGHT = 0.7

    def __init__(
        self,
        captions: Captions,
        photos: PhotoVectors,
        *,
        templates: Sequence[str],
        nouns: Nouns | None = None,
        nearest: int = 10,
        guesses: int = GUESSES,
    ) -> None:
        self.captions, self.photos, self.templates = captions, photos, tuple(templates)
        self.nouns, self.nearest, self.guesses = nouns, nearest, guesses

    def find(self, photos: Sequence[DiscoveryPhoto]) -> Mapping[str, Sequence[str]]:
        """See `NameFinder`."""
        vectors = self.photos(photos)
        near = (vectors @ self.captions.vectors.T).topk(min(self.nearest, len(self.captions)), dim=1).indices
        rows = [self._words([self.captions.texts[i] for i in row]) for row in near.tolist()]
        every = sorted({word for row in rows for word in row})
        text = encode_names(self.photos.encoder, every, self.templates, None)
        place = {word: i for i, word in enumerate(every)}
        found = {}
        for photo, vector, row, columns in zip(photos, vectors, near, rows, strict=True):
            centre = normalize(self.captions.vectors[row].mean(dim=0), dim=0)
            own = text[:, [place[word] for word in columns]]
            score = self.IMAGE_WEIGHT * (vector @ own) + (1 - self.IMAGE_WEIGHT) * (centre @ own)
            found[photo.id] = [columns[i] for i in score.argsort(descending=True, stable=True)[: self.guesses].tolist()]
        return found

    def _words(self, captions: Sequence[str]) -> list[str]:
        """Candidates of some captions, sorted."""
        words: set[str] = set()
        for caption in captions:
            tokens = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", normalise(caption))
            pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens) if without_article(f"{a} {b}") == f"{a} {b}"]
            if self.nouns is None:
                words |= {singular(t) for t in tokens if len(t) > 2 and t not in STOP_WORDS}
            else:
                known = self.nouns.sense_of
                words |= {singular(t) for t in (*tokens, *pairs) if t not in STOP_WORDS and spelling_key(t) in known}
        return sorted(words)

    def settings(self) -> Mapping[str, Any]:
        """See `NameFinder`."""
        return {
            "captions": len(self.captions),
            "nearest": self.nearest,
            "nouns": None if self.nouns is None else len(self.nouns),
            "templates": list(self.templates),
            "encoder": self.photos.encoder.fingerprint,
            "guesses": self.guesses,
        }


# Words that name nothing a photo could be of (ours; short, because the score sorts out the rest).
STOP_WORDS = frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())


# --- Others' guesses


class GuessedFinder:
    """Guesses as FineR and FiNDR publish them, and plain lists.

    A JSON file of one of these forms:

    - {photo: {"guessed_classnames": {"1": name, ...}}}: FiNDR's `data/guessed_classnames/*`.
    - {photo: [name, ...]}: for each photo, best first.
    - [name, ...]: FineR's `guess/*_llm_gussed_names_*.json`, a vocabulary alone. Each photo then gets the names
      nearest to it by the encoder.
    - {"CLASS_0": "{\\"name\\": [...]}"}: FineR's `*_llm_replies_jsoned_*.json`. Its keys are true classes and
      no photos, so it is read as a vocabulary alone.

    Photos are matched by their file's name (see `photo_key`).

    Args:
        file: the guesses.
        photos, templates, guesses: for vocabularies, as for `WordNetFinder`.
    """

    name = "guessed"

    def __init__(
        self, file: str | Path, photos: PhotoVectors, *, templates: Sequence[str], guesses: int = GUESSES
    ) -> None:
        self.file, self.photos, self.templates, self.guesses = Path(file), photos, tuple(templates), guesses
        if not self.file.is_file():
            raise MissingAssetError(f"there are no guesses at {self.file.absolute()}")
        self._by_photo, self._vocabulary = _read_guesses(self.file)

    def find(self, photos: Sequence[DiscoveryPhoto]) -> Mapping[str, Sequence[str]]:
        """See `NameFinder`.

        Raises:
            DatasetError: the guesses are for other photos.
        """
        if self._by_photo is None:
            text = encode_names(self.photos.encoder, self._vocabulary, self.templates, None)
            near = nearest_names(self.photos(photos), self._vocabulary, text, self.guesses)
            return {photo.id: row for photo, row in zip(photos, near, strict=True)}
        by_id = photos_by_id(photos)
        found: dict[str, list[str]] = {}
        for name, row in self._by_photo.items():
            photo = by_id.get(name) or by_id.get(photo_key(name))
            if photo is not None:
                found[photo.id] = row
        missing = [photo.id for photo in photos if photo.id not in found]
        if 2 * len(missing) > len(photos):
            raise DatasetError(
                f"{self.file} has guesses for {len(found)} of {len(photos)} discovery photos, and none for "
                f"{missing[0]!r}; it is about other photos. To find names on its own ones: --draws {self.file}"
            )
        return found

    def settings(self) -> Mapping[str, Any]:
        """See `NameFinder`."""
        kind = "a vocabulary" if self._by_photo is None else "guesses by photo"
        return {"file": self.file.name, "kind": kind, "guesses": self.guesses}


def _read_guesses(file: Path) -> tuple[dict[str, list[str]] | None, list[str]]:
    """Guesses by photo (or `None`), and the vocabulary where that is all."""
    content = load_json_file(file, "guesses")
    texts = isinstance(content, list) and all(isinstance(name, str) for name in content)
    if texts and content:
        return None, list(dict.fromkeys(content))
    if isinstance(content, dict) and content:
        rows = {photo: _row(entry) for photo, entry in content.items()}
        if all(row is not None for row in rows.values()):
            return {photo: row or [] for photo, row in rows.items()}, []
        names = _replies(content)
        if names:
            return None, names
    raise DatasetError(
        f"{file} holds no guesses; expected a list of names, an object {{photo: [names]}}, or FineR's or FiNDR's files"
    )


def _row(entry: Any) -> list[str] | None:
    """The names of one photo, best first; `None` where it is something else."""
    if isinstance(entry, dict) and isinstance(entry.get("guessed_classnames"), dict):
        ranked = entry["guessed_classnames"]
        entry = [ranked[key] for key in sorted(ranked, key=lambda key: (len(key), key))]
    return list(entry) if isinstance(entry, list) and all(isinstance(name, str) for name in entry) else None


def _replies(content: Mapping[str, Any]) -> list[str]:
    """The names in FineR's replies: JSON objects, kept as text, whose keys are names. Damaged ones are skipped."""
    names: dict[str, None] = {}
    for reply in content.values():
        try:
            found = json.loads(reply) if isinstance(reply, str) else None
        except ValueError:
            continue  # FineR counts these too: 10 of 600 birds
        names |= dict.fromkeys(found if isinstance(found, dict) else ())
    return list(names)
