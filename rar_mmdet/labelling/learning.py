"""What a person corrected, kept for the next run: exemplars of the classes, and how far scores can be trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rar_mmdet.errors import MemoryMismatchError, RecordFileError
from rar_mmdet.labelling.certainty import SIGNS, Certainty, FloatArray, fit_certainty, words_of
from rar_mmdet.labelling.decisions import signs_of
from rar_mmdet.labelling.photos import find_photos
from rar_mmdet.memory import Exemplar, ExemplarCache, MemorySource, Shortlister, encode_exemplars, fit_cache
from rar_mmdet.memory.base import EntryEncoder
from rar_mmdet.recognizer import RegionRecognizer

if TYPE_CHECKING:
    from rar_mmdet.labelling.labeller import LabelRun
    from rar_mmdet.labelling.words import WordList
    from rar_mmdet.records import RegionRecord

__all__ = ["LEARNED", "Learned", "TaughtMemory", "learn", "read_learned"]

LEARNED = "learned.safetensors"
UNSEEN = 2000  # labels that nobody looked at, about (ours): enough to know how their scores lie
FOLDS = 5  # of reviewed photos: labels that scores are judged on come from the exemplars of the others (ours)


@dataclass(frozen=True)
class Learned:
    """N exemplars, and R reviewed labels by which scores are judged."""

    encoder: str = ""  # fingerprint of the encoder of the exemplars
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (N, D) float32 unit vectors
    classes: tuple[str, ...] = ()  # N names
    photos: tuple[str, ...] = ()  # N photos that they are of
    alpha: float = 0.0  # weight and sharpness of the exemplars, see `fit_cache`
    beta: float = 1.0
    signs: FloatArray = field(default_factory=lambda: np.zeros((0, len(SIGNS))))  # (R, 13)
    labels: tuple[str, ...] = ()  # R names
    right: Any = field(default_factory=lambda: np.zeros(0, bool))  # (R,) bool
    others: FloatArray = field(default_factory=lambda: np.zeros((0, len(SIGNS))))  # (U, 13) of labels nobody looked at

    @cached_property
    def certainty(self) -> Certainty | None:
        """How far a label can be trusted; nothing where too little was reviewed."""
        return fit_certainty(self.signs, [words_of(name) for name in self.labels], self.right, self.others)

    def save(self, file: Path) -> None:
        """Write it; the file is moved into its place when it is whole."""
        told: dict[str, Any] = {"encoder": self.encoder, "alpha": self.alpha, "beta": self.beta}
        told |= {"classes": self.classes, "photos": self.photos, "labels": self.labels}
        part = file.with_name(f"{file.name}.part")
        arrays = {"signs": self.signs, "right": self.right, "others": self.others}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        save_file({"keys": self.keys.contiguous(), **tensors}, part, {"learned": json.dumps(told)})
        os.replace(part, file)

    def describe(self) -> str:
        """What is known, for people."""
        sure = self.certainty
        told = f"{len(self.right)} reviewed labels, {int(self.right.sum())} of them right"
        told += "" if sure is not None else " (too few right or wrong ones to judge scores by)"
        if len(self.classes):
            use = f"weight {self.alpha:g}" if self.alpha else "they do not help here and are not used"
            told += f"; {len(self.classes)} exemplars of {len(set(self.classes))} classes ({use})"
        return told


def read_learned(file: Path) -> Learned | None:
    """What an earlier run learned; nothing where there is no such file.

    Raises:
        RecordFileError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as stored:
            told: Mapping[str, Any] = json.loads(stored.metadata()["learned"])
            keys, *tables = (stored.get_tensor(name) for name in ("keys", "signs", "right", "others"))
            signs, right, others = (table.numpy() for table in tables)
        lists = {name: tuple(told[name]) for name in ("classes", "photos", "labels")}
        return Learned(
            told["encoder"], keys, lists["classes"], lists["photos"], told["alpha"], told["beta"], signs,
            lists["labels"], right, others,
        )  # fmt: skip
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RecordFileError(f"{file} is no file of what was learned ({error}); apply corrections again") from error


@dataclass(frozen=True)
class TaughtMemory:
    """The memory of a recogniser with the exemplars of the word list and of corrections beside the words."""

    source: MemorySource
    recognizer: RegionRecognizer  # whose cropper cuts the exemplars
    words: WordList
    learned: Learned

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> Shortlister:
        """See `MemorySource`.

        Raises:
            MemoryMismatchError: what was learned is of another encoder.
            ImageReadError: an exemplar photo cannot be read.
        """
        base = self.source.prepare(encoder, category_names)
        check_encoder(self.learned, encoder)
        kept, labels = _known_classes(self.learned, self.words)
        keys = self.learned.keys[kept]
        alpha, beta = self.learned.alpha, self.learned.beta
        given = [
            Exemplar(str(folder / name), phrase)
            for row, folder in self.words.exemplars
            for name in find_photos(folder)[0]
            if (phrase := self.words.phrase_of(row)) is not None
        ]
        if given:
            entries = encode_exemplars(encoder, self.recognizer.cropper.crop, given)
            if not len(keys) or not alpha:
                groups = torch.arange(len(entries))
                alpha, beta = fit_cache(base, len(category_names), entries.vectors, entries.category_ids, groups)
            keys = torch.cat([keys.reshape(-1, entries.vectors.shape[1]), entries.vectors])
            labels = torch.cat([labels, entries.category_ids])
        if not len(keys) or not alpha:
            return base
        return ExemplarCache(base, len(category_names), keys, labels, alpha, beta)


def check_encoder(learned: Learned, encoder: EntryEncoder) -> None:
    """Refuse exemplars of another encoder.

    Raises:
        MemoryMismatchError: naming both.
    """
    if len(learned.classes) and learned.encoder != encoder.fingerprint:
        raise MemoryMismatchError(
            f"what was learned is of encoder {learned.encoder}, this run has {encoder.fingerprint}; review a run of "
            "this encoder, or use that one"
        )


def _known_classes(learned: Learned, words: WordList) -> tuple[list[int], Tensor]:
    """Places and phrases of the exemplars whose classes the words have."""
    rows = {name: row for row, name in enumerate(words.classes)}
    phrases = [words.phrase_of(rows[name]) if name in rows else None for name in learned.classes]
    kept = [place for place, phrase in enumerate(phrases) if phrase is not None]
    return kept, torch.tensor([phrases[place] for place in kept], dtype=torch.int64)


def learn(run: LabelRun, before: Learned | None = None) -> Learned:
    """Exemplars and calibration from the corrections of a run, added to what was known before.

    A corrected or confirmed box is an exemplar of its class. How much exemplars may say is what makes the reviewed
    boxes most likely, each without those of its own photo; nothing where they do not help. Where they say something,
    the reviewed photos are recognised again, a fifth at a time by the exemplars of the others, so that scores are
    judged as they will be on photos that nobody corrected.

    Args:
        run: with corrections.
        before: what `--learned` brought along.
    """
    labeller, before = run.labeller, before or Learned()
    recognizer, words = labeller.recognizer, labeller.words
    corrected = run.corrections()
    seen = {name for name, _ in corrected}
    reviewed = {state.name: records for state, records in run.regions() if state.name in seen}
    recognizer.load()
    check_encoder(before, recognizer.encoder)
    new = _encode(run, reviewed, corrected)
    place = {photo: number for number, photo in enumerate(dict.fromkeys([*before.photos, *new.photos]))}
    mine = Learned(
        recognizer.encoder.fingerprint,
        torch.cat([before.keys.reshape(-1, new.keys.shape[1]), new.keys]) if len(new.keys) else before.keys,
        before.classes + new.classes,
        before.photos + new.photos,
    )
    kept, labels = _known_classes(mine, words)
    if kept:
        base = labeller.source.prepare(recognizer.encoder, words.phrases)
        groups = torch.tensor([place[mine.photos[row]] for row in kept])
        alpha, beta = fit_cache(base, len(words.phrases), mine.keys[kept], labels, groups)
        mine = replace(mine, alpha=alpha, beta=beta)
    if mine.alpha:
        reviewed = _seen_again(run, mine, reviewed)
    others = np.concatenate([before.others, _unseen(run, corrected)])
    return _judged(replace(mine, others=others), before, words, reviewed, corrected)


def _unseen(run: LabelRun, corrected: Mapping[tuple[str, int], int | None]) -> FloatArray:
    """(U, 13) signs of labels that nobody looked at, of photos evenly spread over the run."""
    step = max(sum(state.regions for state in run.done) // UNSEEN, 1)
    found = []
    for place, (state, records) in enumerate(run.regions()):
        if place % step == 0:
            told = zip(records, signs_of(records, run.labeller.words), strict=True)
            found += [one[1] for r, one in told if one is not None and (state.name, r.region) not in corrected]
    return np.array(found, float).reshape(-1, len(SIGNS))


def _encode(
    run: LabelRun,
    reviewed: Mapping[str, list[RegionRecord]],
    corrected: Mapping[tuple[str, int], int | None],
) -> Learned:
    """The corrected boxes of a class as exemplars."""
    words, exemplars = run.labeller.words, {}
    for name, records in reviewed.items():
        for record in records:
            row = corrected.get((name, record.region))
            phrase = None if row is None else words.phrase_of(row)
            if row is not None and phrase is not None:
                source = f"{name}#{record.region}"
                box = (record.box_xyxy[0], record.box_xyxy[1], record.box_xyxy[2], record.box_xyxy[3])
                exemplars[source] = words.classes[row], name, Exemplar(str(run.photos / name), phrase, box, source)
    if not exemplars:
        return Learned()
    recognizer = run.labeller.recognizer
    entries = encode_exemplars(recognizer.encoder, recognizer.cropper.crop, [e for _, _, e in exemplars.values()])
    told = [exemplars[source] for source in entries.sources]
    return Learned(keys=entries.vectors, classes=tuple(c for c, _, _ in told), photos=tuple(p for _, p, _ in told))


def _seen_again(
    run: LabelRun, learned: Learned, reviewed: Mapping[str, list[RegionRecord]]
) -> dict[str, list[RegionRecord]]:
    """The reviewed photos, each as the exemplars of photos in other folds have it."""
    again = {}
    names = sorted(reviewed)
    fold_of = {name: number % FOLDS for number, name in enumerate(names)}
    for fold in range(min(FOLDS, len(names))):
        others = [place for place, photo in enumerate(learned.photos) if fold_of.get(photo) != fold]
        part = replace(
            learned,
            keys=learned.keys[others],
            classes=tuple(learned.classes[place] for place in others),
            photos=tuple(learned.photos[place] for place in others),
        )
        labeller = run.labeller.taught(part)
        for name in names:
            if fold_of[name] == fold:
                again[name] = labeller.recognize_again(run.photos / name, reviewed[name])
    return again


def _judged(
    learned: Learned,
    before: Learned,
    words: WordList,
    reviewed: Mapping[str, list[RegionRecord]],
    corrected: Mapping[tuple[str, int], int | None],
) -> Learned:
    """With the signs of every reviewed label, and whether the person agreed."""
    signs, labels, right = list(before.signs), list(before.labels), list(before.right)
    for name, records in reviewed.items():
        for record, found in zip(records, signs_of(records, words), strict=True):
            if (name, record.region) in corrected and found is not None:
                row, own = found
                truth = corrected[name, record.region]
                signs.append(own)
                labels.append(words.classes[row])
                # Where the person said "dog", "poodle" is not wrong.
                right.append(truth is not None and truth in words.ancestors(row))
    table = np.array(signs, float).reshape(-1, len(SIGNS))
    return replace(learned, signs=table, labels=tuple(labels), right=np.array(right, bool))
