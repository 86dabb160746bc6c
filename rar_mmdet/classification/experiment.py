"""A few-shot table: rows without a language model, each alone and ranked, over shots and seeds; resumable.

Vectors are encoded once and shared by all rows, shots and seeds. Each (row, shots, seed) is one file of records,
written when it is whole: a run that was stopped goes on at the next one, and ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.classification.draws import Draw, draw_first, draw_seeded, read_draw, stratified_sample, whole_train
from rar_mmdet.classification.recording import Recipe, Recorder, claim_folder
from rar_mmdet.classification.released import RELEASED, read_places, write_lists
from rar_mmdet.classification.results import RANKED, UNAIDED, Places, places_of
from rar_mmdet.classification.shortlisters import DESCRIPTIONS, SHORTLISTERS, TEXT_ALONE, VISION, Vectors
from rar_mmdet.classification.vectors import PhotoVectors, encode_class_texts, encode_descriptions
from rar_mmdet.errors import ConfigError, FewShotError
from rar_mmdet.memory.base import Shortlister
from rar_mmdet.memory.few_shot import TEXT_SCALE
from rar_mmdet.records import KEPT_COLUMNS, read_records
from rar_mmdet.structures import Shortlist

__all__ = ["FewShotRun", "Recipe", "TEXT", "WHOLE_TRAIN"]

TEXT = "text"  # the row that the offered names come from
WHOLE_TRAIN = "train"  # in place of a number of shots


class FewShotRun:
    """The records of a table, made or read.

    Args:
        recipe: the parts.
        out: folder of the run; `records/` and `run.json` go there.
        cache_dir: folder of vectors, which other runs share.
        draws: 'seeded' (ours), 'first' (the release's), or a path with {shots} and {seed}, a list for each.
        limit: test photos to take, stratified by class; `None`: all.
        tune: whether rows choose their knobs on the val part.

    Raises:
        ConfigError: `out` holds a run with other settings, or the parts do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        cache_dir: Path | None = None,
        draws: str = "seeded",
        limit: int | None = None,
        tune: bool = False,
    ) -> None:
        self.recipe, self.out, self.draws, self.tune = recipe, out, draws, tune
        dataset = recipe.dataset
        self.test = list(dataset.test) if limit is None else stratified_sample(dataset.test, limit)
        if tune and not dataset.val:
            raise ConfigError(f"{dataset.name} has no val part to choose knobs on; leave --tune out")
        most = None if recipe.ranker is None else recipe.ranker.max_candidates
        if most is not None and recipe.num_candidates > most:
            raise ConfigError(f"num_candidates={recipe.num_candidates}, but this ranker can tell at most {most} apart")
        self._photos = PhotoVectors(recipe.encoder, recipe.cropper, cache_dir)
        vision = recipe.vision_encoder
        self._vision = None if vision is None else PhotoVectors(vision, recipe.cropper, cache_dir)
        self._text: Tensor | None = None
        self._recorder = Recorder(recipe, self.test, self._photos)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """See `claim_folder`: what this run is, beside its data."""
        data = self.recipe.dataset.describe()
        claim_folder(self.out, {**settings, "data": data, "test": len(self.test)})

    def places(
        self, rows: Sequence[str], ranked: Sequence[str], shots: Sequence[str], seeds: Sequence[int]
    ) -> dict[str, dict[str, list[Places]]]:
        """Row -> shots -> the places of the truth for each seed; what is not on disk yet is computed.

        Args:
            rows: of `SHORTLISTERS`.
            ranked: those of them that the ranker is put on.
            shots: numbers as texts, or 'train'.
            seeds: of the draws. A draw without a seed ('first', the whole train part) is made once.
        """
        found: dict[str, dict[str, list[Places]]] = {row: {} for row in rows}
        for row in rows:
            if row in TEXT_ALONE:
                once = [self._cell(row, row in ranked, None, "none")]
                found[row] = dict.fromkeys(shots, once)
        for number in shots:
            draws = self._draws(number, seeds)
            for row in rows:
                if row not in TEXT_ALONE:
                    found[row][number] = [
                        self._cell(row, row in ranked, draw, _draw_name(number, draw)) for draw in draws
                    ]
        return found

    def questions(
        self, ranked: Sequence[str], shots: Sequence[str], seeds: Sequence[int], further: Sequence[str]
    ) -> int:
        """How many (photo, names) the ranker is still to judge: what is on disk is not asked again.

        Args:
            ranked, shots, seeds: as in `places`.
            further: names of files that are no cell of the table.
        """
        files = [self._file(name) for name in further]
        draws = [_draw_name(number, draw) for number in shots for draw in self._draws(number, seeds)]
        for row in ranked:
            files += [self._cell_file(row, True, name) for name in (["none"] if row in TEXT_ALONE else draws)]
        return len(self.test) * sum(not file.is_file() for file in files)

    def offered(self, counts: Sequence[int]) -> dict[int, Places]:
        """The ranker's answers where the truth is always among the offered names: the text row's best, and it.

        Args:
            counts: numbers of offered names, each at least 2.
        """
        result = {}
        for count in counts:
            if not 2 <= count <= self.recipe.dataset.num_classes:
                raise ConfigError(
                    f"{count} offered names: expected 2 to {self.recipe.dataset.num_classes}, the number of classes"
                )
            file = self._file(f"offered-{count}")
            if not file.is_file():
                found = self._shortlister(TEXT, None).search(self._photos(self.test), self.recipe.dataset.num_classes)
                self._write(file, _with_truth(found, self._truth(), count), is_ranked=True, num_candidates=count)
            result[count] = places_of(read_records(file))
        return result

    def unaided(self) -> Places:
        """The ranker over all names, without retrieval; its own order is what counts.

        Raises:
            ConfigError: it cannot tell so many names apart.
        """
        ranker, classes = self.recipe.ranker, self.recipe.dataset.num_classes
        most = None if ranker is None else ranker.max_candidates
        if most is not None and classes > most:
            raise ConfigError(
                f"row {UNAIDED!r}: {classes} names, but this ranker can tell at most {most} apart; ask=dict(type="
                "'Likelihood') has no such limit"
            )
        file = self._file(UNAIDED)
        if not file.is_file():
            everything = torch.arange(classes).repeat(len(self.test), 1)
            even = Shortlist(everything, torch.full(everything.shape, 1 / classes))
            self._write(file, even, is_ranked=True, num_candidates=classes)
        return places_of(read_records(file))

    def released(self, shots: Sequence[str], seeds: Sequence[int]) -> dict[str, list[NDArray[np.int64]]]:
        """Shots -> for each seed the place of the truth in the released list, which counts photos and not classes."""
        found = {}
        for number in shots:
            files = []
            for draw in self._draws(number, seeds):
                files.append(self._file(f"{RELEASED}-{_draw_name(number, draw)}"))
                if not files[-1].is_file():
                    labels = torch.tensor([example.label for example in draw.examples])
                    queries, exemplars = self._photos(self.test), self._photos(draw.examples)
                    write_lists(files[-1], self.test, queries, exemplars, labels)
            found[number] = [read_places(file) for file in files]
        return found

    def _file(self, name: str) -> Path:
        return self.out / "records" / f"{name}.jsonl"

    def _cell_file(self, row: str, is_ranked: bool, name: str) -> Path:
        return self._file(f"{row}{RANKED if is_ranked else ''}-{name}")

    def _draws(self, shots: str, seeds: Sequence[int]) -> list[Draw]:
        dataset = self.recipe.dataset
        if shots == WHOLE_TRAIN:
            return [whole_train(dataset)]
        if self.draws == "first":
            return [draw_first(dataset, int(shots))]
        if self.draws == "seeded":
            return [draw_seeded(dataset, int(shots), seed) for seed in seeds]
        files = [self.draws.format(shots=shots, seed=seed) for seed in seeds]
        return [read_draw(file, dataset, shots=int(shots), seed=seed) for file, seed in zip(files, seeds, strict=True)]

    def _cell(self, row: str, is_ranked: bool, draw: Draw | None, name: str) -> Places:
        file = self._cell_file(row, is_ranked, name)
        if not file.is_file():
            depth = min(max(KEPT_COLUMNS, self.recipe.num_candidates), self.recipe.dataset.num_classes)
            try:
                shortlist = self._shortlister(row, draw).search(self._vectors_for(row)(self.test), depth)
            except FewShotError as error:
                raise FewShotError(f"row {row!r}, {name}: {error}") from error
            self._write(file, shortlist, is_ranked)
        return places_of(read_records(file))

    def _shortlister(self, row: str, draw: Draw | None) -> Shortlister:
        if self._text is None:
            self._text = encode_class_texts(self.recipe.encoder, self.recipe.dataset)
        chosen = () if draw is None else draw.examples
        val = self.recipe.dataset.val if self.tune and draw is not None else ()
        photos = self._vectors_for(row)
        vectors = Vectors(
            self._text,
            photos(chosen),
            torch.tensor([example.label for example in chosen], dtype=torch.int64),
            photos(val) if val else None,
            torch.tensor([example.label for example in val]) if val else None,
            self._described() if row == DESCRIPTIONS else None,
            photos.encoder.logit_scale if row == VISION else TEXT_SCALE,
        )
        return SHORTLISTERS[row](vectors)

    def _vectors_for(self, row: str) -> PhotoVectors:
        if row != VISION:
            return self._photos
        if self._vision is None:
            raise ConfigError(f"row {VISION!r} needs a dict `vision_encoder` in the config, such as DINOv2's")
        return self._vision

    def _described(self) -> Tensor | None:
        described = self.recipe.descriptions
        return None if described is None else encode_descriptions(self.recipe.encoder, described)

    def _truth(self) -> Tensor:
        return torch.tensor([example.label for example in self.test])

    def _write(self, file: Path, shortlist: Shortlist, is_ranked: bool, num_candidates: int | None = None) -> None:
        labels = [example.label for example in self.test]
        names = self.recipe.dataset.display_names
        self._recorder.write(file, shortlist, names, truth=labels, is_ranked=is_ranked, num_candidates=num_candidates)


def _draw_name(number: str, draw: Draw) -> str:
    """How files name a draw of so many shots."""
    return f"{number}-{draw.seed or 0}"


def _with_truth(found: Shortlist, truth: Tensor, count: int) -> Shortlist:
    """(Q, count): the `count` best names of a full shortlist; the truth takes the last place where it is not there."""
    ids, probs = found.category_ids[:, :count].clone(), found.probs[:, :count].clone()
    missing = ~(ids == truth[:, None]).any(dim=1)
    ids[missing, -1] = truth[missing]
    place = (found.category_ids == truth[:, None]).int().argmax(dim=1)
    probs[missing, -1] = found.probs.gather(1, place[:, None])[missing, 0]
    return Shortlist(ids, probs)
