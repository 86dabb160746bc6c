"""The `names` of a config, and the finders that it and the command line describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.classification.naming.asking import QUESTIONS, AttributeFinder, Blip2Finder, MllmFinder
from rar_mmdet.classification.naming.finders import GUESSES, CaptionFinder, GuessedFinder, NameFinder, WordNetFinder
from rar_mmdet.classification.naming.finders import read_captions as captions_of
from rar_mmdet.classification.naming.wordnet import Nouns, read_nouns
from rar_mmdet.classification.recording import Recipe
from rar_mmdet.classification.vectors import PhotoVectors
from rar_mmdet.components import asks_a_model, build_component, check_keys, nearest
from rar_mmdet.errors import ConfigError
from rar_mmdet.rankers import AskingRanker
from rar_mmdet.regions import RegionCropper

__all__ = ["FINDERS", "NamesSettings", "Source", "make_finder"]


@dataclass(frozen=True)
class NamesSettings:
    """The key `names` of a config; every key may be left out.

    Args:
        kind: the set's super-category in a word or two ("bird", "car model"), put into the questions.
        asker: a ranker's settings, for the model that names photos; `None`: the config's ranker. Its way to ask is
            replaced by `Open` for questions, and left for attributes.
        questions: texts with {kind}; `None`: those of the finder.
        max_new_tokens: the longest reply.
        pattern, attributes: names put together from attributes instead of asked for; see `AttributeFinder`.
        shortlist: combinations of attributes the model is asked about.
        views: croppers by which the model sees a photo; the first alone for questions.
        guesses: names for each photo.
        min_support: photos a name must be guessed for.
        nouns: WordNet folder, for the finder `wordnet` and the baseline's row.
        sentence_encoder: of sACC: a name of `SENTENCE_ENCODERS`, a hub id or a folder; 'encoder': the texts of the
            config's own encoder, which compares with nothing published.
        voter, finer_encoder: encoders of FineR's classifier; see `NamesRun`.
    """

    kind: str = "object"
    asker: Mapping[str, Any] | None = None
    questions: Sequence[str] | None = None
    max_new_tokens: int = 64
    pattern: str | None = None
    attributes: Mapping[str, Sequence[str]] | None = None
    shortlist: int = 64
    views: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{"window": "pad"}])
    guesses: int = GUESSES
    min_support: int = 1
    nouns: str | None = None
    sentence_encoder: str = "all-mpnet-base-v2"
    voter: Mapping[str, Any] | None = None
    finer_encoder: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("guesses", "min_support", "shortlist", "max_new_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"names.{name} must be a whole number of at least 1, got {value!r}")
        if (self.pattern is None) != (self.attributes is None):
            raise ConfigError("names.pattern and names.attributes belong together: give both or neither")

    @staticmethod
    def of(config: Mapping[str, Any]) -> NamesSettings:
        """From a config.

        Raises:
            ConfigError: `names` is no dict, or has a key that does not exist.
        """
        given = config.get("names") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"names must be a dict of {', '.join(f.name for f in fields(NamesSettings))}")
        check_keys(NamesSettings, "the dict `names`", given, "config")
        return NamesSettings(**given)

    def read_nouns(self) -> Nouns | None:
        """The dictionary, if there is one."""
        return None if self.nouns is None else read_nouns(self.nouns)


@dataclass(frozen=True)
class Source:
    """What a finder is made from."""

    config: Mapping[str, Any]
    settings: NamesSettings
    recipe: Recipe
    device: torch.device
    answers: Path  # where a model's answers are kept unless its settings say where
    cache_dir: Path | None = None
    nouns: Nouns | None = None
    captions: Path | None = None
    guesses: Path | None = None

    @property
    def photos(self) -> PhotoVectors:
        """Vectors by the config's encoder."""
        return PhotoVectors(self.recipe.encoder, self.recipe.cropper, self.cache_dir)

    @property
    def templates(self) -> tuple[str, ...]:
        """The set's."""
        return self.recipe.dataset.templates

    def asker(self, ask: Mapping[str, Any] | None) -> AskingRanker:
        """The model that names photos, loaded; `ask` replaces its way to ask."""
        given = self.settings.asker or self.config.get("ranker")
        if not isinstance(given, Mapping):
            raise ConfigError("this finder asks a model: the config needs `ranker`, or `names=dict(asker=...)`")
        if not asks_a_model(given):
            raise ConfigError(f"names.asker: {given.get('type')!r} asks no model; give the settings of one that does")
        asked = given if ask is None else {**given, "ask": dict(ask)}
        ranker = build_component({"cache": str(self.answers), **asked}, "names.asker")
        ranker.load(self.device)
        return ranker

    def talker(self) -> AskingRanker:
        """The model, asked in its own words."""
        return self.asker({"type": "Open", "max_new_tokens": self.settings.max_new_tokens})

    def views(self) -> list[RegionCropper]:
        """The croppers."""
        return [build_component(view, "names.views", "RegionCropper") for view in self.settings.views]


def _wordnet(source: Source) -> NameFinder:
    if source.nouns is None:
        raise ConfigError("finder 'wordnet' needs a dictionary: --wordnet FOLDER, or names=dict(nouns=FOLDER)")
    return WordNetFinder(
        source.nouns,
        source.photos,
        templates=source.templates,
        guesses=source.settings.guesses,
        cache_dir=source.cache_dir,
    )


def _captions(source: Source) -> NameFinder:
    if source.captions is None:
        raise ConfigError("finder 'captions' needs a file of captions: --captions FILE (`rar-mmdet names captions`)")
    captions = captions_of(source.captions, source.recipe.encoder)
    guesses = source.settings.guesses
    return CaptionFinder(captions, source.photos, templates=source.templates, nouns=source.nouns, guesses=guesses)


def _blip2(source: Source) -> NameFinder:
    return Blip2Finder(source.talker(), source.views()[0], guesses=source.settings.guesses)


def _mllm(source: Source) -> NameFinder:
    settings = source.settings
    if settings.pattern is not None and settings.attributes is not None:
        return AttributeFinder(
            source.asker(None),
            source.photos,
            source.views(),
            pattern=settings.pattern,
            attributes=settings.attributes,
            templates=source.templates,
            shortlist=settings.shortlist,
            guesses=settings.guesses,
        )
    questions = settings.questions or QUESTIONS
    return MllmFinder(
        source.talker(), source.views()[0], kind=settings.kind, questions=questions, guesses=settings.guesses
    )


def _guessed(source: Source) -> NameFinder:
    if source.guesses is None:
        raise ConfigError("finder 'guessed' needs a file of guesses: --guesses FILE")
    return GuessedFinder(source.guesses, source.photos, templates=source.templates, guesses=source.settings.guesses)


FINDERS: dict[str, Callable[[Source], NameFinder]] = {
    "wordnet": _wordnet,
    "captions": _captions,
    "blip2": _blip2,
    "mllm": _mllm,
    "guessed": _guessed,
}


def make_finder(name: str, source: Source) -> NameFinder:
    """A finder by its name.

    Raises:
        ConfigError: there is no such finder, or something it needs is not given.
    """
    if name not in FINDERS:
        raise ConfigError(f"there is no finder {name!r}{nearest(name, list(FINDERS))} Known: {', '.join(FINDERS)}")
    return FINDERS[name](source)
