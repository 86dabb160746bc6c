"""Photos and words in, labels out; and a run over a folder that can be killed and goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from rar_mmdet.detectors import Detected, Detector, class_scores
from rar_mmdet.errors import AnnotationFileError, ConfigError, ImageReadError, InvalidBoxError, RecordFileError
from rar_mmdet.files.images import read_image
from rar_mmdet.fusion import NoneOfThese
from rar_mmdet.labelling.corrections import read_corrections, write_corrections
from rar_mmdet.labelling.decisions import Choice, Decision, choices, decide
from rar_mmdet.labelling.learning import LEARNED, Learned, TaughtMemory, learn, read_learned
from rar_mmdet.labelling.outlines import Outline, clipped, outline_of_mask, outline_of_segmentation
from rar_mmdet.labelling.photos import Label, LabelledPhoto, find_photos
from rar_mmdet.labelling.words import WordList, read_words
from rar_mmdet.labelling.writers import open_writers
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.records import RegionRecord, describe_regions
from rar_mmdet.structures import ImageRegions

__all__ = ["LabelRun", "Labeller", "WholePhoto", "label_of"]

PHOTOS_AT_ONCE = 8  # recognised together (ours): fills the batches of encoder and ranker
RECORDS, PHOTOS, SETTINGS, CORRECTIONS = "records.jsonl", "photos.jsonl", "run.json", "corrections.json"
BROUGHT = "brought.safetensors"  # what an earlier run learned, as this one got it
THRESHOLDS = 1000  # that `--precision` chooses from


class WholePhoto:
    """A "detector" whose one box is the photo."""

    def detect(self, images: Sequence[Any], paths: Sequence[str | None] | None = None) -> list[Detected]:
        """See `Detector`."""
        found = []
        for image in images:
            height, width = read_image(image).shape[:2]
            found.append(Detected(torch.tensor([[0.0, 0.0, width, height]]), torch.ones(1)))
        return found


class Labeller:
    """Names from a word list for the boxes of photos.

    Args:
        recognizer: any recogniser; its own names are replaced by the words.
        words: a `WordList`, the path of a file, or lines (`read_words`).
        detector: where boxes come from, such as `TransformersDetector` or `AnnotationDetector`; whole photos by
            default.
        min_score: labels below it are not written, or replaced by a class above that has it.
        learned: from corrections of an earlier run; a score is then the probability that the label is right.
    """

    def __init__(
        self,
        recognizer: RegionRecognizer,
        words: WordList | str | Path | Sequence[str],
        detector: Detector | None = None,
        min_score: float = 0.5,
        learned: Learned | None = None,
    ) -> None:
        if not 0 <= min_score <= 1:
            raise ConfigError(f"min_score must be in [0, 1], got {min_score}")
        self.words = words if isinstance(words, WordList) else read_words(words)
        self.recognizer = recognizer.with_vocabulary(list(self.words.phrases))
        if not isinstance(self.recognizer.fusion, NoneOfThese):  # a box may be none of the words
            self.recognizer.fusion = NoneOfThese(self.recognizer.fusion)
        self.detector, self.min_score, self.learned = detector or WholePhoto(), min_score, learned
        self.source = recognizer.memory_source  # without exemplars
        if isinstance(self.source, TaughtMemory):
            self.source = self.source.source
        self.recognizer.memory_source = self.source
        if learned is not None or self.words.exemplars:
            self.recognizer.memory_source = TaughtMemory(self.source, self.recognizer, self.words, learned or Learned())

    def taught(self, learned: Learned | None) -> Labeller:
        """The same labeller with what an earlier run learned; no weights are loaded again."""
        return Labeller(self.recognizer, self.words, self.detector, self.min_score, learned)

    def __call__(self, photo: Any) -> list[tuple[str | None, float, tuple[float, ...]]]:
        """(class name or `None`, score, box in pixels) of each box of one photo.

        Args:
            photo: what `read_image` takes.
        """
        (records,) = self.recognize([(str(photo) if isinstance(photo, str | Path) else "", read_image(photo))])
        decisions = self.decide(records)
        return [
            (None if d.class_id is None else self.words.classes[d.class_id], d.score, record.box_xyxy)
            for d, record in zip(decisions, records, strict=True)
        ]

    def recognize(self, photos: Sequence[tuple[str, Any]]) -> list[list[RegionRecord]]:
        """Records of the regions of some photos.

        Args:
            photos: name and (H, W, 3) uint8 RGB pixels of each.
        """
        found = self.detector.detect([pixels for _, pixels in photos], [name for name, _ in photos])
        batch = [
            ImageRegions(pixels, one.boxes_xyxy, one.scores, one.masks, class_scores=self._class_scores(one), name=name)
            for one, (name, pixels) in zip(found, photos, strict=True)
        ]
        recognized = self.recognizer.recognize(batch)
        return [
            _with_outlines(describe_regions(one, name), detected, pixels.shape[:2])
            for one, detected, (name, pixels) in zip(recognized, found, photos, strict=True)
        ]

    def recognize_again(self, photo: Path, records: Sequence[RegionRecord]) -> list[RegionRecord]:
        """Other records of the same boxes of a photo, without asking the detector.

        Raises:
            ImageReadError: the photo cannot be read any more.
        """
        boxes = torch.tensor([r.box_xyxy for r in records]).reshape(-1, 4)
        scores = torch.tensor([r.box_score for r in records])
        silent = self._class_scores(Detected(boxes, scores))  # records do not keep what the detector said of names
        regions = ImageRegions(read_image(photo), boxes, scores, class_scores=silent, name=str(photo))
        (found,) = self.recognizer.recognize([regions])
        told = describe_regions(found, records[0].image if records else str(photo))
        return [dataclasses.replace(new, region=old.region) for new, old in zip(told, records, strict=True)]

    def _class_scores(self, found: Detected) -> torch.Tensor | None:
        """(R, C) what the detector says of each word, where the recogniser joins that."""
        if self.recognizer.detector_fusion is None:
            return None
        return class_scores(found, self.recognizer.category_names)

    def choices(self, records: Sequence[RegionRecord]) -> list[Choice]:
        """What each region of one photo may be called, whatever score is asked for."""
        return choices(records, self.words, None if self.learned is None else self.learned.certainty)

    def decide(self, records: Sequence[RegionRecord], min_score: float | None = None) -> list[Decision]:
        """What the regions of one photo are called.

        Args:
            records: of all regions of the photo.
            min_score: in place of the labeller's own.
        """
        least = self.min_score if min_score is None else min_score
        return [decide(choice, least) for choice in self.choices(records)]


def _with_outlines(records: list[RegionRecord], found: Detected, image_hw: tuple[int, int]) -> list[RegionRecord]:
    """The records with the outlines of their masks. A recogniser may have skipped boxes; those are passed over."""
    if found.masks is None and found.segmentations is None:
        return records
    rows = iter(range(len(found)))
    told = []
    for record in records:
        row = next(r for r in rows if np.allclose(found.boxes_xyxy[r].tolist(), record.box_xyxy, atol=1e-3))
        outline: Outline = ()
        if found.segmentations is not None and found.segmentations[row] is not None:
            outline = outline_of_segmentation(found.segmentations[row], image_hw)
        elif found.masks is not None:
            outline = outline_of_mask(found.masks[row].numpy())
        told.append(dataclasses.replace(record, outline=outline) if outline else record)
    return told


@dataclasses.dataclass(frozen=True, slots=True)
class PhotoState:
    """A photo that is done; a run holds them all."""

    id: int
    name: str
    width: int
    height: int
    regions: int
    end: int  # bytes of the records' file once its regions are written
    error: str | None = None
    outlines: int = 0  # of its regions


class LabelRun:
    """The labels of a folder of photos, in a folder that a killed run goes on in.

    Args:
        labeller: names the boxes.
        photos: the folder.
        out: of labels, records and the review page.
        settings: what else tells this run from another, such as the config.
        overwrite: drop what another run left in `out`.
        learned: folder of labels that were corrected; what was learned there is used.
        precision: wanted share of right labels, in place of the labeller's `min_score`; needs something learned.

    Raises:
        ConfigError: `out` holds the labels of other words or settings, or nothing was learned.
    """

    def __init__(
        self,
        labeller: Labeller,
        photos: str | Path,
        out: str | Path,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        learned: str | Path | None = None,
        precision: float | None = None,
    ) -> None:
        if precision is not None and not 0 < precision < 1:
            raise ConfigError(f"precision must lie between 0 and 1, got {precision}; 0.95 asks for 95 % right labels")
        self.photos, self.out, self.precision = Path(photos), Path(out), precision
        self.names, self.passed_over = find_photos(self.photos)
        brought = None if learned is None else Path(learned) / LEARNED
        if brought is not None and not brought.is_file():
            raise ConfigError(
                f"nothing was learned in {learned} (no {LEARNED}): give the --out of a run with corrections"
            )
        self._claim(labeller.words, settings or {}, overwrite, brought)
        self.brought = read_learned(self.out / BROUGHT)
        known = read_learned(self.out / LEARNED) or self.brought
        self.labeller = labeller if known is None else labeller.taught(known)
        self.done = self._read_done()
        self._min_score: float | None = None

    def _claim(self, words: WordList, settings: Mapping[str, Any], overwrite: bool, brought: Path | None) -> None:
        said: tuple[Any, ...] = (words.classes, words.parents, words.phrases, words.class_of)
        if words.exemplars:
            said += (words.exemplars,)
        digest = hashlib.sha256(repr(said).encode())
        mine = json.loads(json.dumps({**settings, "photos": str(self.photos.resolve()), "words": digest.hexdigest()}))
        if brought is not None:
            mine["learned"] = str(brought.parent.resolve())
        file = self.out / SETTINGS
        if file.is_file() and not overwrite:
            found = json.loads(file.read_text(encoding="utf-8"))
            other = sorted(key for key in {**mine, **found} if mine.get(key) != found.get(key))
            if other:
                raise ConfigError(
                    f"{self.out} holds labels of another run ({', '.join(other)} differ): give another --out, or "
                    "--overwrite to begin anew"
                )
            return
        self.out.mkdir(parents=True, exist_ok=True)
        # Copied first: what was learned may be what is now dropped.
        part = self.out / f"{BROUGHT}.part"
        if brought is not None:
            shutil.copyfile(brought, part)
        for name in (RECORDS, PHOTOS, CORRECTIONS, LEARNED, BROUGHT):
            (self.out / name).unlink(missing_ok=True)
        if brought is not None:
            os.replace(part, self.out / BROUGHT)
        part = file.with_name(f"{SETTINGS}.part")
        part.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
        os.replace(part, file)

    def _read_done(self) -> list[PhotoState]:
        """Photos that are done; what a killed run wrote of another one is cut off."""
        states, good = [], 0
        file, records = self.out / PHOTOS, self.out / RECORDS
        if file.is_file():
            for line in file.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                states.append(PhotoState(**json.loads(line)))
                good += len(line)
            os.truncate(file, good)
        end = states[-1].end if states else 0
        size = records.stat().st_size if records.is_file() else 0
        if size < end:
            raise RecordFileError(f"{records} is shorter than {file} says; give --overwrite to begin anew")
        if size > end:
            os.truncate(records, end)
        return states

    def run(self) -> Counter[str]:
        """Recognise the photos that are not done; how many of which kind."""
        known = {state.name for state in self.done}
        left = [name for name in self.names if name not in known]
        counts: Counter[str] = Counter(photos=len(self.names), done_before=len(self.names) - len(left))
        self._min_score = None
        with (
            open(self.out / RECORDS, "a", encoding="utf-8") as records,
            open(self.out / PHOTOS, "a", encoding="utf-8") as photos,
            tqdm(total=len(left), desc="label", unit="photo", disable=None) as bar,
        ):
            for some in self._read_ahead(left):
                for state, found in self._recognize(some):
                    records.writelines(record.to_json() + "\n" for record in found)
                    records.flush()
                    whole = dataclasses.replace(state, end=records.tell())
                    photos.write(json.dumps(dataclasses.asdict(whole), ensure_ascii=False) + "\n")
                    photos.flush()
                    self.done.append(whole)
                    counts["unreadable" if state.error else "labelled"] += 1
                    counts["regions"] += state.regions
                    if state.error:
                        bar.write(f"left out: {state.error}")
                    bar.update()
        return counts

    def _read_ahead(self, names: Sequence[str]) -> Iterator[list[tuple[str, NDArray[np.uint8] | str]]]:
        """Names of some photos with their pixels, or why there are none; the next are read while these are recognised.

        OpenCV decodes without Python's lock. Twice `PHOTOS_AT_ONCE` are in memory.
        """

        def begin(start: int) -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
            some = names[start : start + PHOTOS_AT_ONCE]
            return zip(some, pool.map(self._read, some), strict=True)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            coming = begin(0)
            for end in range(PHOTOS_AT_ONCE, len(names) + PHOTOS_AT_ONCE, PHOTOS_AT_ONCE):
                read = list(coming)
                coming = begin(end)
                yield read

    def _recognize(
        self, read: Sequence[tuple[str, NDArray[np.uint8] | str]]
    ) -> Iterator[tuple[PhotoState, list[RegionRecord]]]:
        errors = {name: pixels for name, pixels in read if isinstance(pixels, str)}
        good = [(name, pixels) for name, pixels in read if not isinstance(pixels, str)]
        found: dict[str, list[RegionRecord]] = {}
        try:
            found = dict(zip((n for n, _ in good), self.labeller.recognize(good), strict=True)) if good else {}
        except (InvalidBoxError, ImageReadError, AnnotationFileError):  # of one photo: tell which, keep the others
            for name, pixels in good:
                try:
                    (found[name],) = self.labeller.recognize([(name, pixels)])
                except (InvalidBoxError, ImageReadError, AnnotationFileError) as error:
                    errors[name] = str(error)
        sizes = {name: pixels.shape[:2] for name, pixels in good}
        for name, _ in read:
            height, width = sizes.get(name, (0, 0))
            records = found.get(name, [])
            number = len(self.done) + 1
            outlines = sum(record.outline is not None for record in records)
            yield PhotoState(number, name, width, height, len(records), 0, errors.get(name), outlines), records

    def _read(self, name: str) -> NDArray[np.uint8] | str:
        """Pixels of a photo, or why there are none."""
        try:
            return read_image(self.photos / name)
        except ImageReadError as error:
            return str(error)

    def regions(self) -> Iterator[tuple[PhotoState, list[RegionRecord]]]:
        """Every photo that could be read, with its records, in the order they were done."""
        if not (self.out / RECORDS).is_file():
            return
        with open(self.out / RECORDS, encoding="utf-8") as stream:
            for state in self.done:
                records = [RegionRecord.from_json(stream.readline()) for _ in range(state.regions)]
                if state.error is None:
                    yield state, records

    @property
    def min_score(self) -> float:
        """The score that a label needs: the one asked for, or the least that gives the precision asked for.

        Labels are then right as often as their probabilities say: those of all labels, which are what the fit of the
        reviewed regions makes of these photos, have the wanted mean. Corrected boxes do not count.

        Raises:
            ConfigError: a precision was asked for, and nothing was learned to judge scores by.
        """
        if self.precision is None:
            return self.labeller.min_score
        if self.labeller.learned is None or self.labeller.learned.certainty is None:
            raise ConfigError(
                f"--precision {self.precision:g} needs reviewed labels to judge scores by: review a run, give its "
                "corrections.json (or a file of annotated boxes of its photos) to --apply, and say --learned OUT in "
                "the next; or ask for a score with --min-score"
            )
        if self._min_score is None:
            corrected = self.corrections()
            chains = (
                choice.chain
                for state, records in self.regions()
                for record, choice in zip(records, self.labeller.choices(records), strict=True)
                if (state.name, record.region) not in corrected
            )
            self._min_score = score_for(self.precision, chains)
        return self._min_score

    def decided(self) -> Iterator[tuple[PhotoState, list[tuple[RegionRecord, Decision]]]]:
        """Every photo that could be read, with what its regions are called, corrections left aside."""
        least = self.min_score
        for state, records in self.regions():
            chosen = (decide(choice, least) for choice in self.labeller.choices(records))
            yield state, list(zip(records, chosen, strict=True))

    def correct(self, corrections: Mapping[tuple[str, int], int | None]) -> Learned:
        """Fold in what a person said of regions: labels, exemplars, and how far scores can be trusted.

        What was said before of other regions stays. Photos that are not done yet are named with what was learned.

        Args:
            corrections: (photo, region) -> class, `None` for none; also of labels that are right as they are.
        """
        both = {**self.corrections(), **corrections}
        write_corrections(self.out / CORRECTIONS, both, self.labeller.words)
        learned = learn(self, self.brought)
        learned.save(self.out / LEARNED)
        self.labeller, self._min_score = self.labeller.taught(learned), None
        return learned

    def corrections(self) -> dict[tuple[str, int], int | None]:
        """(photo, region) -> class that a person gave it, `None` for none."""
        file = self.out / CORRECTIONS
        if not file.is_file():
            return {}
        return read_corrections(file, self.labeller.words)

    def write(self, formats: Sequence[str]) -> tuple[list[Path], Counter[str]]:
        """Write labels in these formats; where they are, and how many boxes of which kind."""
        counts: Counter[str] = Counter()
        outlines = any(state.outlines for state in self.done)
        writers = open_writers(self.out, formats, self.labeller.words.classes, outlines)
        corrected = self.corrections()
        try:
            with tqdm(total=len(self.done), desc="write", unit="photo", disable=None, leave=False) as bar:
                for state, decided in self.decided():
                    labels = tuple(self._labels(decided, (state.width, state.height), corrected, counts))
                    photo = LabelledPhoto(
                        state.id, state.name, self.photos / state.name, state.width, state.height, labels
                    )
                    for writer in writers:
                        writer.add(photo)
                    bar.update()
            for writer in writers:
                writer.close()
            return [writer.finish() for writer in writers], counts
        except BaseException:
            for writer in writers:
                writer.drop()
            raise

    def _labels(
        self,
        decided: Iterable[tuple[RegionRecord, Decision]],
        photo_wh: tuple[int, int],
        corrected: Mapping[tuple[str, int], int | None],
        counts: Counter[str],
    ) -> Iterator[Label]:
        for record, decision in decided:
            key = (str(record.image), record.region)
            if key in corrected:
                class_id, score = corrected[key], 1.0
                counts["corrected"] += 1
            else:
                class_id, score = decision.class_id, decision.score
            counts["unsure" if class_id is None else "labels"] += 1
            if class_id is not None:
                yield label_of(record, class_id, score, photo_wh)


def label_of(record: RegionRecord, class_id: int, score: float, photo_wh: tuple[int, int]) -> Label:
    """A region's label, box and outline cut at the photo's rim: tools refuse boxes that leave it."""
    (x1, y1, x2, y2), (width, height) = record.box_xyxy, photo_wh
    box = (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))
    outline = tuple(tuple(part) for part in record.outline or ())
    return Label(box, class_id, score, clipped(outline, photo_wh))


def score_for(precision: float, chains: Iterable[Sequence[tuple[int, float]]]) -> float:
    """The least score at which labels have that mean probability of being right.

    Args:
        precision: in (0, 1).
        chains: of each region, as `Choice` has them; scores are probabilities.
    """
    sums, counts = np.zeros(THRESHOLDS + 1), np.zeros(THRESHOLDS + 1)
    for chain in chains:
        reached = 0
        for _, score in chain:  # the first class that has the threshold gets the label
            end = int(score * THRESHOLDS) + 1
            if end > reached:
                sums[reached:end] += score
                counts[reached:end] += 1
                reached = end
    mean = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
    return float(np.flatnonzero(mean >= precision)[0]) / THRESHOLDS
