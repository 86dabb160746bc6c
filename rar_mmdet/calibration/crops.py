"""Crop scale, blur and framing of a retriever, found on training images (paper section C.3, Table 11, Figure 11).

Retrieval only: every annotated box is cropped at every scale with every blur, named, and scored by AP overall and by
object size. Embeddings are kept on disk and read from there, so that memory does not grow with the number of boxes. A
scale by area costs no encoding: for every box it picks one of the fixed scales.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.calibration.annotated import AnnotatedRegions
from rar_mmdet.emission import Emission
from rar_mmdet.encoders import Encoder
from rar_mmdet.errors import ConfigError, InvalidBoxError
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.memory import Shortlister
from rar_mmdet.regions import AreaScale, BlurBackground, FixedScale, NoBackground, RegionCropper
from rar_mmdet.regions.scale import box_areas
from rar_mmdet.scoring import COCO, LVIS, Detections, GroundTruth, evaluate, limited_summary, lvis_summary

__all__ = [
    "COLUMNS",
    "SCALES",
    "Embedder",
    "Picked",
    "ScoredImage",
    "Scorer",
    "best_policy",
    "check_policies",
    "improve",
    "sweep",
]

SCALES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8)  # paper Table 11
COLUMNS = ("AP", "APs", "APm", "APl")
SIZES = ("small", "medium", "large")
# Raise it when `RegionCropper` gives other pixels for the same settings, so that embeddings kept before are not used.
CROPS_VERSION = 2
CROPS_PER_BATCH = 256  # crops made and encoded together; bounds memory
REGIONS_PER_SEARCH = 4096  # regions named together; bounds memory


class Embedder:
    """Embeddings of all regions under a crop policy; kept on disk.

    Args:
        cropper: its size, window, fill and feather of the blur are used.
        encoder: encodes the crops.
        regions: what to crop.
        folder: where the files go. Their names depend on the settings, the boxes, the size and the time of change of
            every photo, and `CROPS_VERSION`.
    """

    def __init__(self, cropper: RegionCropper, encoder: Encoder, regions: AnnotatedRegions, folder: Path) -> None:
        self.cropper, self.encoder, self.regions, self.folder = cropper, encoder, regions, folder
        self.feather = cropper.background.feather
        settings = repr(self._cropper(scale=1.0, sigma=0.0))
        digest = hashlib.sha256(f"{CROPS_VERSION} {settings} {encoder.fingerprint}".encode())
        for file in regions.files:
            stat = file.stat()
            digest.update(f"\n{file} {stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(regions.starts.tobytes() + regions.boxes_xyxy.tobytes())
        self.key = digest.hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)

    def _cropper(self, scale: float, sigma: float) -> RegionCropper:
        return replace(self.cropper, scale=FixedScale(scale), background=BlurBackground(sigma, self.feather))

    def __call__(self, scale: float, sigma: float) -> NDArray[np.float32]:
        """(R, D) unit vectors for a fixed scale and blur; read from disk where they are used.

        Raises:
            ImageReadError: a photo cannot be read, or has another size than its annotations say.
            InvalidBoxError: a box cannot be cropped; the message names the photo.
        """
        path = self.folder / f"{self.key}_scale{scale:g}_sigma{sigma:g}.npy"
        if not path.is_file():
            unfinished = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                self._write(unfinished, self._cropper(scale, sigma), f"scale {scale:g}, blur {sigma:g}")
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _write(self, path: Path, cropper: RegionCropper, label: str) -> None:
        shape = (len(self.regions), self.encoder.dim)
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        done, waiting = 0, []
        with tqdm(total=len(self.regions), desc=label, unit="box", leave=False, disable=None) as bar:
            for crops in self._crops(cropper):
                waiting.append(crops)
                count = sum(map(len, waiting))
                if count >= CROPS_PER_BATCH or done + count == len(self.regions):
                    vectors[done : done + count] = self.encoder.encode_images(torch.cat(waiting)).float().cpu().numpy()
                    done, waiting = done + count, []
                    bar.update(count)
        vectors.flush()

    def _crops(self, cropper: RegionCropper) -> Iterator[Tensor]:
        """The crops of all regions in order, at most `CROPS_PER_BATCH` at a time."""
        for image, file in enumerate(self.regions.files):
            photo, boxes = self.regions.photo(image), self.regions.boxes_xyxy[self.regions.rows(image)]
            for start in range(0, len(boxes), CROPS_PER_BATCH):
                try:
                    yield cropper.crop(photo, boxes[start : start + CROPS_PER_BATCH])
                except InvalidBoxError as error:
                    raise InvalidBoxError(f"photo {file}: {error}") from error


@dataclass(frozen=True)
class Picked:
    """For every region its vector from one of several embeddings; read where it is used."""

    embeddings: tuple[NDArray[np.float32], ...]  # each (R, D)
    choice: NDArray[np.int64]  # (R,) which of them

    def __getitem__(self, rows: slice) -> Tensor:
        choice = self.choice[rows]
        vectors = np.empty((len(choice), self.embeddings[0].shape[1]), dtype=np.float32)
        for index, embedding in enumerate(self.embeddings):
            mine = choice == index
            vectors[mine] = embedding[rows][mine]
        return torch.from_numpy(vectors)


@dataclass(frozen=True)
class ScoredImage:
    """The boxes of one image and the score of each name: columns as in its shortlist."""

    image: int  # row of the images
    boxes_xyxy: Tensor  # (R, 4)
    box_scores: Tensor  # (R,)
    scores: Tensor  # (R, N) float32
    labels: Tensor  # (R, N) int64


class Scorer:
    """AP of embeddings: search, emit, evaluate, with every box given at score 1.

    LVIS's AP where the categories have frequencies, else COCO's.

    Args:
        memory: of the categories of `annotations`, in their label order.
        emission: what becomes a detection.
        regions: the regions that the embeddings are of.
        annotations: the annotation file.
    """

    def __init__(
        self, memory: Shortlister, emission: Emission, regions: AnnotatedRegions, annotations: Mapping[str, Any]
    ) -> None:
        self.memory, self.emission, self.regions = memory, emission, regions
        self.category_ids = np.array(label_order(annotations["categories"]))
        self.protocol = LVIS if any("frequency" in category for category in annotations["categories"]) else COCO
        records = [_complete(record, row + 1) for row, record in enumerate(regions.annotations)]
        self.truth = GroundTruth.from_dataset(
            {**annotations, "annotations": records},
            federated=self.protocol.federated,
            image_ids=regions.image_ids,
        )

    def __call__(self, embeddings: Picked) -> dict[str, float]:
        """`COLUMNS` in percent."""
        summary = self.summary(self._named(embeddings))
        return {name: 100 * summary[name] for name in COLUMNS}

    def _named(self, embeddings: Picked) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Scores and labels of each image's regions, by retrieval."""
        for images, rows in self.regions.parts(REGIONS_PER_SEARCH):
            found = self.memory.search(embeddings[rows], self.emission.depth)
            probs, labels = found.probs.cpu(), found.category_ids.cpu()
            for image in images:
                own = self.regions.rows(image)
                mine = slice(own.start - rows.start, own.stop - rows.start)
                yield image, probs[mine], labels[mine]

    def summary(self, named: Iterable[tuple[int, Tensor, Tensor]]) -> dict[str, float]:
        """AP and what goes with it, in [0, 1].

        Args:
            named: for every image its number, and (R, N) scores and labels of its regions.
        """
        return self.summary_of_found(map(self._given, named), self.emission)

    def _given(self, named: tuple[int, Tensor, Tensor]) -> ScoredImage:
        image, scores, labels = named
        boxes = torch.from_numpy(self.regions.boxes_xyxy[self.regions.rows(image)])
        return ScoredImage(image, boxes, torch.ones(len(boxes)), scores, labels)

    def summary_of_found(self, found: Iterable[ScoredImage], emission: Emission) -> dict[str, float]:
        """AP and what goes with it, in [0, 1], of boxes that need not be those of the annotations."""
        parts = [self._detections(one, emission) for one in found]
        image_ids, category_ids, boxes, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        detections = Detections(image_ids, category_ids, boxes, scores)
        result = evaluate(self.truth, detections, self.protocol)
        return lvis_summary(result, self.truth) if self.protocol.federated else limited_summary(result)

    def _detections(self, found: ScoredImage, emission: Emission) -> tuple[NDArray, ...]:
        """Image ids, category ids, boxes x, y, width, height and scores of one image's detections."""
        emitted = emission.select(found.scores, found.labels, found.boxes_xyxy.float(), found.box_scores)
        category_ids = self.category_ids[found.labels[emitted.region_ids, emitted.columns].numpy()]
        image_ids = np.full(len(category_ids), self.regions.image_ids[found.image])
        xyxy = found.boxes_xyxy.double().numpy()[emitted.region_ids.numpy()]
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        return image_ids, category_ids, xywh, emitted.scores.double().numpy()


def _complete(annotation: Mapping[str, Any], number: int) -> dict[str, Any]:
    """An annotation with all that scoring asks of it: a number of its own, and an area, else that of its box."""
    area = annotation.get("area")
    if not isinstance(area, int | float) or isinstance(area, bool) or not 0 < area < np.inf:
        area = annotation["bbox"][2] * annotation["bbox"][3]
    return {**annotation, "id": number, "area": area, "iscrowd": 0, "ignore": 0}


def sweep(
    embed: Callable[[float, float], NDArray[np.float32]],
    score: Callable[[Picked], dict[str, float]],
    boxes_xyxy: NDArray[np.float64],
    scales: Sequence[float],
    sigmas: Sequence[float],
    bounds: tuple[float, float],
) -> list[dict[str, Any]]:
    """One row per blur and scale, then per blur the scale by area: the best found, and the paper's choice."""
    by_size = np.digitize(box_areas(boxes_xyxy), bounds)
    rows: list[dict[str, Any]] = []
    for sigma in sigmas:
        vectors = {scale: embed(scale, sigma) for scale in scales}
        none = np.zeros(len(by_size), dtype=np.int64)
        fixed = [
            {"sigma": sigma, "scale": scale, **score(Picked((vectors[scale],), none))}
            for scale in tqdm(scales, desc=f"score, blur {sigma:g}", unit="scale", leave=False, disable=None)
        ]
        best = max(fixed, key=lambda row: row["AP"])
        found: dict[tuple[float, ...], dict[str, Any]] = {(best["scale"],) * 3: best}

        def by_area(choice: tuple[float, ...], found: dict = found, vectors: dict = vectors) -> float:
            if choice not in found:
                found[choice] = score(Picked(tuple(vectors[scale] for scale in choice), by_size))
            return found[choice]["AP"]

        choices = [improve((best["scale"],) * 3, scales, by_area)]
        paper = AreaScale().factors
        if set(paper) <= set(scales):
            by_area(paper)
            choices.append(paper)
        rows += fixed
        rows += [{**found[choice], "sigma": sigma, "scale": list(choice)} for choice in dict.fromkeys(choices)]
    return rows


def improve(
    choice: tuple[float, ...], scales: Sequence[float], value: Callable[[tuple[float, ...]], float]
) -> tuple[float, ...]:
    """Change the scale of one size at a time as long as AP over all regions rises (coordinate ascent)."""
    while True:
        before = choice
        for size in range(len(choice)):
            options = [(*choice[:size], scale, *choice[size + 1 :]) for scale in scales]
            choice = max([choice, *options], key=value)
        if choice == before:
            return choice


def best_policy(
    rows: Sequence[Mapping[str, Any]], feather: float, bounds: tuple[float, float]
) -> tuple[float, dict[str, Any]]:
    """The highest AP, and its window, scale and background as keys of a cropper."""
    row = max(rows, key=lambda row: row["AP"])
    if isinstance(row["scale"], float):
        scale = {"type": "FixedScale", "factor": row["scale"]}
    else:
        scale = {"type": "AreaScale", **dict(zip(SIZES, row["scale"], strict=True)), "bounds": bounds}
    background = {"type": "BlurBackground", "sigma": row["sigma"], "feather": feather}
    return row["AP"], {"window": row["window"], "scale": scale, "background": background}


def check_policies(cropper: RegionCropper, where: str) -> None:
    """Refuse policies that the sweep would replace by others.

    Raises:
        ConfigError: the scale or the background is of a type that is not swept.
    """
    for part, swept in (("scale", (FixedScale, AreaScale)), ("background", (NoBackground, BlurBackground))):
        given = type(getattr(cropper, part))
        if given not in swept:
            raise ConfigError(
                f"{where}.{part} is {given.__name__}, which cannot be swept; {' and '.join(c.__name__ for c in swept)} "
                f"can. To calibrate without it: --cfg-options {where}.{part}=None"
            )
