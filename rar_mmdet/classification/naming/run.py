"""Found names on the test part: every way to use them, each alone and ranked, over draws; resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.classification.draws import stratified_sample
from rar_mmdet.classification.naming.found import FoundNames
from rar_mmdet.classification.naming.scores import NamesTable, Scorer, predictions
from rar_mmdet.classification.naming.views import VIEWS, augmented_views
from rar_mmdet.classification.naming.ways import WAYS, Known, NamedClassifier
from rar_mmdet.classification.naming.wordnet import Nouns
from rar_mmdet.classification.recording import Recipe, Recorder, claim_folder
from rar_mmdet.classification.vectors import PhotoVectors, encode_class_texts, encode_names
from rar_mmdet.encoders.base import Encoder
from rar_mmdet.memory.classifiers import text_classifier
from rar_mmdet.records import KEPT_COLUMNS, read_records

__all__ = ["TRUE_NAMES", "WORDNET", "NamesRun"]

TRUE_NAMES = "upper bound: true names"
WORDNET = "wordnet"  # the baseline's row: all nouns, for each test photo


class NamesRun:
    """Records and scores of one set.

    Args:
        recipe: data set, encoder, ranker, croppers, fusion.
        out: folder of the run.
        cache_dir: folder of vectors, which other runs share.
        voter: encoder by which photos vote in FineR's classifier (ViT-L/14 there); `None`: the recipe's.
        finer_encoder: encoder of FineR's classifier and of the test photos it sees; `None`: the recipe's. With
            `statistics="imagenet"` pixels are normalised as in its evaluator.
        limit: test photos to take, stratified; `None`: all.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        cache_dir: Path | None = None,
        voter: Encoder | None = None,
        finer_encoder: Encoder | None = None,
        limit: int | None = None,
    ) -> None:
        self.recipe, self.out, self.cache_dir = recipe, out, cache_dir
        dataset = recipe.dataset
        self.test = list(dataset.test) if limit is None else stratified_sample(dataset.test, limit)
        self._photos = PhotoVectors(recipe.encoder, recipe.cropper, cache_dir)
        self._voter = self._photos if voter is None else PhotoVectors(voter, recipe.cropper, cache_dir)
        finer = finer_encoder
        self._finer = self._photos if finer is None else PhotoVectors(finer, recipe.cropper, cache_dir)
        self._recorder = Recorder(recipe, self.test, self._photos)
        self._train = {example.id: example for example in dataset.train}

    def claim(self, settings: Mapping[str, Any]) -> None:
        """See `claim_folder`."""
        claim_folder(self.out, {**settings, "data": self.recipe.dataset.describe(), "test": len(self.test)})

    def table(
        self,
        found: Mapping[str, Sequence[FoundNames]],
        scorer: Scorer,
        *,
        ways: Sequence[str],
        ranked: Sequence[str],
        nouns: Nouns | None = None,
    ) -> NamesTable:
        """All rows; what is not on disk yet is computed.

        Args:
            found: label of a finder -> what it found on each draw.
            scorer: of the same test photos.
            ways: of `WAYS`.
            ranked: those of them that the ranker is put on; if on any, also on the baseline and the upper bound.
            nouns: for the baseline's row; `None`: it is left out.
        """
        table = NamesTable(self.recipe.dataset.name, {row: [score] for row, score in scorer.floors().items()})
        if nouns is not None:
            self._add(table, WORDNET, self._wordnet(nouns), "all", scorer, bool(ranked))
        for label, draws in found.items():
            for way in ways:
                for number, one in enumerate(draws, start=1):
                    draw = str(one.discovery.get("seed") or number)
                    self._add(table, f"{label}, {way}", None, f"{label}-{way}-{draw}", scorer, way in ranked, one, way)
        self._add(table, TRUE_NAMES, self._true_names(), "true", scorer, bool(ranked))
        return table

    def _add(
        self,
        table: NamesTable,
        row: str,
        classifier: NamedClassifier | None,
        name: str,
        scorer: Scorer,
        is_ranked: bool,
        found: FoundNames | None = None,
        way: str = "",
    ) -> None:
        file = self.out / "records" / f"{name}{'+rar' if is_ranked else ''}.jsonl"
        if not file.is_file():
            if classifier is None:
                assert found is not None, "a row of found names"
                classifier = WAYS[way](self.known(found))
            uses_finer = way in ("finer", "released")
            queries = (self._finer if uses_finer else self._photos)(self.test)
            depth = min(max(KEPT_COLUMNS, self.recipe.num_candidates), len(classifier.names))
            shortlist = classifier.shortlister.search(queries, depth)
            self._recorder.write(file, shortlist, classifier.names, truth=None, is_ranked=is_ranked)
        scores = {suffix: scorer.score(names) for suffix, names in predictions(list(read_records(file))).items()}
        for suffix, score in scores.items():
            table.rows.setdefault(row + suffix, []).append(score)

    def known(self, found: FoundNames) -> Known:
        """Names and discovery photos as the ways want them; no test photo is touched."""
        names = found.vocabulary
        photos = [self._train[photo] for photo in found.guesses]
        vectors = self._photos(photos)
        text = encode_names(self.recipe.encoder, names, self.recipe.dataset.templates, None)

        @cache
        def bare_text() -> Tensor:
            return encode_names(self._finer.encoder, names, ["{}"], None)

        @cache
        def votes() -> Tensor:
            return self._voter(photos) @ encode_names(self._voter.encoder, names, ["{}"], None)

        @cache
        def views() -> Tensor:
            encoder = self._finer.encoder
            plain = self._finer(photos)
            crops = torch.cat([augmented_views(photo, encoder.image_size) for photo in photos])
            augmented = torch.cat([encoder.encode_images(part).cpu() for part in crops.split(512)])
            return torch.cat([plain[:, None], augmented.view(len(photos), VIEWS, -1)], dim=1)

        return Known(names, text, vectors, tuple(found.guesses.values()), bare_text, votes, views)

    def _wordnet(self, nouns: Nouns) -> NamedClassifier:
        text = encode_names(self.recipe.encoder, nouns.names, self.recipe.dataset.templates, self.cache_dir)
        return NamedClassifier(nouns.names, text_classifier(text))

    def _true_names(self) -> NamedClassifier:
        dataset = self.recipe.dataset
        return NamedClassifier(dataset.display_names, text_classifier(encode_class_texts(self.recipe.encoder, dataset)))
