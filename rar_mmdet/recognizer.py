"""The whole method in one place: crop, encode, retrieve, rank, fuse, emit. Needs no MMDetection."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.background import BackgroundSource, background_names, show_background
from rar_mmdet.emission import BestPerRegion, Emission
from rar_mmdet.encoders import Encoder, MixedEncoder, RegionEncoder
from rar_mmdet.errors import ConfigError, InvalidBoxError, VocabularyError
from rar_mmdet.files import clean_name, read_vocabulary
from rar_mmdet.files.images import as_photo
from rar_mmdet.fusion import DetectorFusion, Fusion, LogLikFusion, NoneOfThese
from rar_mmdet.memory import MemorySource, Shortlister
from rar_mmdet.rankers import Ranker
from rar_mmdet.regions import RegionCropper, find_invalid_boxes, find_suspicious_boxes
from rar_mmdet.structures import ImageRegions, Ranking, Recognition, RegionCrops, Shortlist

__all__ = ["RegionRecognizer", "crop_regions"]

logger = logging.getLogger(__name__)


@functools.cache
def _warn_without_masks(background: str) -> None:
    logger.warning(
        "%s got no masks and keeps whole boxes sharp. Give masks to RegionRecognizer; in a test pipeline "
        "LoadAnnotations(with_mask=True), ProposalsFromAnnotations(with_masks=True) and CropRegions (docs/regions.md)",
        background,
    )


_SAID: set[str] = set()


def _warn_of_boxes(kind: str, remark: str) -> None:
    """Each kind of remark once in a process."""
    if kind not in _SAID:
        _SAID.add(kind)
        logger.warning("%s. Further images are not named", remark)


def crop_regions(cropper: RegionCropper, regions: ImageRegions) -> Tensor:
    """(R, 3, S, S) uint8 crops; warns, once in a process, when the background is made for masks and there are none."""
    if regions.masks is None and len(regions) and cropper.background.uses_mask:
        _warn_without_masks(type(cropper.background).__name__)
    if regions.image is None:
        raise ConfigError(f"{regions.name or 'an image'} came without pixels, and its crops were not made ahead")
    return cropper.crop(regions.image, regions.boxes_xyxy, masks=regions.masks)


class RegionRecognizer:
    """Names for boxes: RAR (arXiv 2403.13805, Figure 2) over any vocabulary.

    May be used from several threads at once.

    Args:
        cropper: what the encoder sees; its `size` may be `None`, the encoder's own.
        encoder: `OpenClipEncoder`, or any other `Encoder`. One that is a `RegionEncoder` too gets whole photos with
            their boxes; the cropper then serves the ranker alone. `MixedEncoder` gets photos and crops.
        memory: where categories are looked up: a recipe such as `TextMemory()`, built or loaded at the first
            prediction, or a `CategoryMemory`.
        category_names: the vocabulary, in label order: names, or the path of a names or annotation file. Names are for
            prompts and people; identity is the index.
        ranker: re-orders the shortlist; `None` for retrieval only.
        ranker_cropper: what the ranker sees; `None`: `cropper`'s policies at the ranker's size.
        fusion: how both opinions become a score. `LogLikFusion()` when `None`.
        detector_fusion: how a detector's own class scores join retrieval's before the ranker is asked, such as
            `LogPool`; regions must then come with `class_scores`. `None`: they are not looked at.
        emission: which (region, category) pairs become detections. `BestPerRegion()`, a name for every region, when
            `None`.
        num_candidates: K, the categories the ranker sees (5 in the paper, Table 5).
        background: names of other things, which take probability and are never emitted: a list, a file of names, or
            'lvis' for the names of LVIS v1. Those that the vocabulary has too are left out. Not for a ready memory.
        num_background: M, how many of them the ranker sees beside the K.
        on_bad_box: 'raise' or 'skip' (counted and reported) for boxes that are not finite, empty, inverted or outside.

    Attributes:
        region_batch: regions cropped and encoded at a time; bounds memory.
        counts: images, regions and skipped boxes so far.

    Raises:
        VocabularyError: there are no names.
        ConfigError: the parts do not fit together.
    """

    region_batch = 256

    def __init__(
        self,
        *,
        cropper: RegionCropper,
        encoder: Encoder,
        memory: MemorySource,
        category_names: str | Path | Sequence[str],
        ranker: Ranker | None = None,
        ranker_cropper: RegionCropper | None = None,
        fusion: Fusion | None = None,
        detector_fusion: DetectorFusion | None = None,
        emission: Emission | None = None,
        num_candidates: int = 5,
        background: BackgroundSource | None = None,
        num_background: int = 3,
        on_bad_box: str = "raise",
    ) -> None:
        names = [] if isinstance(category_names, Sequence) and not len(category_names) else category_names
        if not names:
            raise VocabularyError("category_names is empty; give a list of names, a names file or an annotation file")
        if on_bad_box not in ("raise", "skip"):
            raise ConfigError(f"on_bad_box must be 'raise' or 'skip', got {on_bad_box!r}")
        for name, count in (("num_candidates", num_candidates), ("num_background", num_background)):
            if count < 1:
                raise ConfigError(f"{name} must be at least 1, got {count}")
        most = None if ranker is None else ranker.max_candidates
        beside = 0 if background is None else num_background
        if most is not None and num_candidates + beside > most:
            raise ConfigError(
                f"num_candidates={num_candidates}{f' and num_background={beside}' if beside else ''}, but this ranker "
                f"can tell at most {most} apart"
            )
        self.encoder, self.ranker, self.memory_source = encoder, ranker, memory
        self.category_names = tuple(read_vocabulary(names))
        self.prompt_names = [clean_name(name) for name in self.category_names]
        self.background, self.num_background = background, num_background
        self.background_names = background_names(background, self.category_names)
        self.fusion, self.detector_fusion = fusion or LogLikFusion(), detector_fusion
        self.emission = emission or BestPerRegion()
        self.num_candidates, self.on_bad_box = num_candidates, on_bad_box
        self.counts: Counter[str] = Counter()
        self.device: torch.device | None = None
        self._cropper, self._ranker_cropper = cropper, ranker_cropper
        self._memory: Shortlister | None = None
        self._lock = threading.RLock()

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any], vocabulary: Any = None) -> RegionRecognizer:
        """The recogniser of a config file, with every part as the config says; nothing is loaded yet.

        Args:
            config: a config file with a `recognizer` somewhere in its model, or the dict of a recogniser.
            vocabulary: names or a file of names instead of the config's.

        Raises:
            ConfigError: there is no recogniser in the config, or more than one, or a key is wrong.
        """
        from rar_mmdet.components import recognizer_of

        return recognizer_of(config, vocabulary)

    def with_vocabulary(self, category_names: str | Path | Sequence[str]) -> RegionRecognizer:
        """The same recogniser for other names. Encoder and ranker are shared, so no weights are loaded again.

        Raises:
            MemoryMismatchError: at the first prediction, when `memory` was a ready memory and not a recipe.
        """
        other = RegionRecognizer(
            cropper=self._cropper,
            encoder=self.encoder,
            memory=self.memory_source,
            category_names=category_names,
            ranker=self.ranker,
            ranker_cropper=self._ranker_cropper,
            fusion=self.fusion,
            detector_fusion=self.detector_fusion,
            emission=self.emission,
            num_candidates=self.num_candidates,
            background=self.background,
            num_background=self.num_background,
            on_bad_box=self.on_bad_box,
        )
        other.device, other.region_batch = self.device, self.region_batch
        return other

    @property
    def shortlist_depth(self) -> int:
        """N: what the emission may look at and the ranker may re-order."""
        return max(self.emission.depth, self.num_candidates)

    @property
    def memory(self) -> Shortlister:
        """The category memory, background names behind the names; built or loaded on first access."""
        with self._lock:
            if self._memory is None:
                names = (*self.category_names, *self.background_names)
                self._memory = self.memory_source.prepare(self.encoder, names)
            return self._memory

    @property
    def cropper(self) -> RegionCropper:
        """The cropper of the encoder; without a size of its own it has the encoder's."""
        if self._cropper.size is None:
            self._cropper = self._cropper.with_size(self.encoder.image_size)
        return self._cropper

    @property
    def ranker_cropper(self) -> RegionCropper | None:
        """The cropper of the ranker, or `None` without a ranker."""
        if self.ranker is not None and (self._ranker_cropper is None or self._ranker_cropper.size is None):
            self._ranker_cropper = (self._ranker_cropper or self.cropper).with_size(self.ranker.crop_size)
        return self._ranker_cropper

    def to(self, device: torch.device | str) -> RegionRecognizer:
        """Use `device` for encoder and ranker; they load at the first prediction."""
        self.device = torch.device(device)
        return self

    def __call__(
        self, image: Any, boxes_xyxy: Any, box_scores: Any = None, masks: Any = None, class_scores: Any = None
    ) -> Recognition:
        """Recognise the boxes of one image.

        Args:
            image: what `rar_mmdet.files.read_image` takes: a path, a PIL image, an (H, W, 3) RGB array, a (3, H, W)
                RGB tensor, ...
            boxes_xyxy: (R, 4) numbers, pixels of the original, upright image.
            box_scores: (R,) in [0, 1], the detector's confidence; `None` for given boxes.
            masks: (R, H, W) boolean masks of the boxes, for a cropper whose background keeps masks sharp.
            class_scores: (R, C) the detector's own score of each name, for a `detector_fusion`; see
                `rar_mmdet.detectors.class_scores`.

        Raises:
            ImageReadError: the image cannot be read.
            InvalidBoxError: a box is not finite, empty, inverted or outside the image.
        """
        name = str(image) if isinstance(image, str | Path) else ""
        regions = ImageRegions(
            as_photo(image), boxes_xyxy, box_scores, masks=masks, class_scores=class_scores, name=name
        )
        return self.recognize([regions])[0]

    @torch.inference_mode()
    def recognize(self, batch: Sequence[ImageRegions]) -> list[Recognition]:
        """Recognise the regions of several images; their crops share encoder and ranker batches.

        Precision is what encoder, memory and ranker were told: an autocast around this call has no effect.

        Raises:
            InvalidBoxError: a box is not finite, empty, inverted or outside its image.
            ConfigError: crops were made with other settings than those of this recognizer's croppers; or there is a
                `detector_fusion`, and regions come without class scores.
        """
        device = self.load()
        with torch.autocast(device.type, enabled=False):
            good = self._cut_once([self._good_regions(regions, index) for index, regions in enumerate(batch)])
            # Deep enough for a whole shortlist of names, wherever the background names stand.
            found = self.memory.search(self._encode(good), self.shortlist_depth + len(self.background_names))
            shortlist = Shortlist(found.category_ids.cpu(), found.probs.cpu().float())
            if self.detector_fusion is not None:
                shortlist = self.detector_fusion(shortlist, self._class_scores(good, shortlist))
            if self.background_names:
                shortlist, ranking, fused = self._beside_background(good, shortlist)
            else:
                ranking = self._rank(good, shortlist, self.num_candidates)
                fused = self.fusion(shortlist, ranking)
        with self._lock:
            self.counts.update(images=len(good), regions=len(shortlist))
        return [self._pack(regions, shortlist[rows], ranking[rows], fused[rows]) for regions, rows in _split(good)]

    def report(self, judge: bool = True) -> dict[str, Any]:
        """What was done so far: counts of images, regions, skipped boxes by reason, and the ranker's own report.

        Args:
            judge: whether a ranker with too many unusable answers is an error.

        Raises:
            RankerError: more than its `max_fallback_rate` of the asked regions got no usable answer.
        """
        report: dict[str, Any] = dict(self.counts)
        if self.ranker is not None:
            if judge:
                self.ranker.judge()
            report["ranker"] = self.ranker.report()
        return report

    def load(self) -> torch.device:
        """Load the parts, once, on the device that `to` named, else on a GPU if there is one; returns the device.

        The first prediction does it by itself.

        Raises:
            ConfigError: the cropper's size is not the encoder's.
        """
        with self._lock:
            if self.device is None:
                self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self.encoder.load(self.device)
            if self.ranker is not None:
                self.ranker.load(self.device)
            if self.cropper.size != self.encoder.image_size:
                raise ConfigError(
                    f"cropper.size={self.cropper.size}, but the encoder takes {self.encoder.image_size} px: crops "
                    "would be resized once more. Leave `size` out of the cropper"
                )
            return self.device

    def _good_regions(self, regions: ImageRegions, index: int) -> ImageRegions:
        """The regions that can be cropped, checked against the image and against the settings of crops made ahead."""
        if regions.crops is not None:
            self._check_settings(regions.crops)
        if regions.image_hw is None:
            return regions
        if regions.box_scores is None and len(regions):  # given boxes; a detector's are in pixels
            for remark in find_suspicious_boxes([regions.boxes_xyxy], [regions.image_hw]):
                _warn_of_boxes(re.sub(r"[\d.]+", "N", remark), f"{regions.name or f'image {index}'}: {remark}")
        bad = find_invalid_boxes(regions.boxes_xyxy, regions.image_hw)
        if not bad:
            return regions
        if self.on_bad_box == "raise":
            first, (height, width) = min(bad), regions.image_hw
            name = f"image {index} of the batch ({f'{regions.name}, ' if regions.name else ''}{width}x{height} px)"
            raise InvalidBoxError(
                f"{name}: {len(bad)} of {len(regions)} boxes cannot be cropped; box {first} = "
                f"{regions.boxes_xyxy[first].tolist()}: {bad[first]}. Boxes are xyxy in pixels of the original image; "
                "use on_bad_box='skip' to drop and count such boxes"
            )
        with self._lock:
            # The reason without its particulars, such as the size of the photo.
            self.counts.update(f"skipped box: {re.split(r'[:(]| the ', reason)[0].strip()}" for reason in bad.values())
        return regions[torch.tensor([i for i in range(len(regions)) if i not in bad], dtype=torch.int64)]

    def _check_settings(self, crops: RegionCrops) -> None:
        pairs: list[tuple[str, Any, Any]] = [("cropper", crops.encoder_cropper, self.cropper)]
        if self.ranker is not None:
            pairs.append(("ranker_cropper", crops.ranker_cropper, self.ranker_cropper))
        for name, made_with, own in pairs:
            if made_with is not None and made_with != own:
                raise ConfigError(
                    f"crops were made with another {name} than the recognizer's: {made_with} is not {own}. "
                    f"Give CropRegions and the recognizer the same {name}=dict(...)"
                )

    def _cut_once(self, batch: list[ImageRegions]) -> list[ImageRegions]:
        """The regions with their crops, where encoder and ranker look at the same ones and they are few enough."""
        if (
            self.ranker_cropper != self.cropper  # also where no ranker is
            or isinstance(self.encoder, RegionEncoder)
            or sum(map(len, batch)) > self.region_batch
        ):
            return batch

        def cut(regions: ImageRegions) -> ImageRegions:
            if regions.crops is not None or not len(regions):
                return regions
            crops = crop_regions(self.cropper, regions)
            return replace(regions, crops=RegionCrops(crops, crops))

        return [cut(regions) for regions in batch]

    def _chunks(self, cropper: RegionCropper, regions: ImageRegions, ready: Tensor | None) -> Iterator[Tensor]:
        """Crops of all regions of an image, `region_batch` at a time."""
        for start in range(0, len(regions), self.region_batch):
            rows = slice(start, start + self.region_batch)
            yield crop_regions(cropper, regions[rows]) if ready is None else ready[rows]

    def _encode(self, batch: Sequence[ImageRegions]) -> Tensor:
        """(R, D) unit vectors of all regions of the batch; encoder batches are filled across images."""
        encoder = self.encoder
        if isinstance(encoder, RegionEncoder):
            return _encode_whole_photos(encoder, encoder.dim, batch)
        if isinstance(encoder, MixedEncoder):
            crops, regions = encoder.crops, encoder.regions
            return encoder.mix(
                lambda: self._encode_crops(crops, batch), lambda: _encode_whole_photos(regions, regions.dim, batch)
            )
        return self._encode_crops(encoder, batch)

    def _encode_crops(self, encoder: Encoder, batch: Sequence[ImageRegions]) -> Tensor:
        vectors: list[Tensor] = []
        pending: list[Tensor] = []
        for regions in batch:
            ready = None if regions.crops is None else regions.crops.encoder
            for chunk in self._chunks(self.cropper, regions, ready):
                # Crops made ahead lie in main memory, others where the image is.
                pending.append(chunk.to(self.device))
                if sum(map(len, pending)) >= self.region_batch:
                    vectors.append(encoder.encode_images(torch.cat(pending)))
                    pending = []
        if pending or not vectors:
            size = encoder.image_size
            empty = torch.zeros((0, 3, size, size), dtype=torch.uint8, device=self.device)
            vectors.append(encoder.encode_images(torch.cat([empty, *pending])))
        return torch.cat(vectors)

    def _class_scores(self, batch: Sequence[ImageRegions], shortlist: Shortlist) -> Tensor:
        """(R, N) the detector's own score of every category of the shortlist; NaN: no class of its."""
        scores = [torch.full((0, shortlist.depth), torch.nan)]
        for regions, rows in _split(batch):
            own = regions.class_scores
            if own is None and len(regions):
                raise ConfigError(
                    f"{regions.name or 'an image'}: its {len(regions)} regions have no class_scores, and "
                    "detector_fusion needs what the detector says of its own classes (rar_mmdet.detectors.class_scores)"
                    "; without a detector leave detector_fusion out"
                )
            if own is not None and own.shape[1] != len(self.category_names):
                raise ConfigError(
                    f"{regions.name or 'an image'}: class_scores {tuple(own.shape)} for {len(self.category_names)} "
                    "names; expected a column for each, NaN where the detector knows no such class"
                )
            if own is not None:
                background = torch.full((len(own), len(self.background_names)), torch.nan)
                scores.append(torch.cat([own, background], dim=1).gather(1, shortlist.category_ids[rows]))
        return torch.cat(scores)

    def _beside_background(self, batch: Sequence[ImageRegions], found: Shortlist) -> tuple[Shortlist, Ranking, Tensor]:
        """Shortlist, ranking and fused scores of the names, all made with the background names beside them."""
        both = show_background(
            found, len(self.category_names), self.shortlist_depth, self.num_candidates, self.num_background
        )
        ranking = self._rank(batch, both.joint, both.shown.depth)
        return both.known, both.ranking_of(ranking), both.names_of(self.fusion(both.joint, ranking))

    def _rank(self, batch: Sequence[ImageRegions], shortlist: Shortlist, num_candidates: int) -> Ranking:
        """Ask the ranker about the regions that can matter; the others keep retrieval order and count as skipped."""
        candidates = shortlist.head(num_candidates)
        # What cannot be reached is known only while the names keep the mass that retrieval gave them.
        keeps_mass = not self.background_names and not isinstance(self.fusion, NoneOfThese)
        cropper = self.ranker_cropper
        if self.ranker is None or cropper is None or len(shortlist) == 0:
            return Ranking.identity(len(shortlist), candidates.depth)
        crops, asked = [], []
        for regions, rows in _split(batch):
            wanted = (
                self.emission.can_reach(shortlist[rows], num_candidates, _scores_of(regions))
                if keeps_mass
                else torch.ones(len(regions), dtype=torch.bool)
            )
            ready = None if regions.crops is None else regions.crops.ranker
            if not wanted.all():
                regions = replace(regions, crops=None)[wanted]
                ready = None if ready is None else ready[wanted]
            crops += [chunk.cpu() for chunk in self._chunks(cropper, regions, ready)]
            asked.append(wanted)
        mask = torch.cat(asked)
        if not mask.all():
            with self._lock:
                self.counts["not asked about"] += int((~mask).sum())
        if not crops:
            return Ranking.identity(len(shortlist), candidates.depth)
        names = [*self.prompt_names, *map(clean_name, self.background_names)]
        return self.ranker.rank(torch.cat(crops), candidates[mask], names).spread(mask)

    def _pack(self, regions: ImageRegions, shortlist: Shortlist, ranking: Ranking, fused: Tensor) -> Recognition:
        box_scores = _scores_of(regions)
        emitted = self.emission.select(fused, shortlist.category_ids, regions.boxes_xyxy, box_scores)
        return Recognition(
            boxes_xyxy=regions.boxes_xyxy,
            box_scores=box_scores,
            shortlist=shortlist,
            ranking=ranking,
            fused=fused,
            scores=emitted.scores,
            category_ids=shortlist.category_ids[emitted.region_ids, emitted.columns],
            region_ids=emitted.region_ids,
            category_names=self.category_names,
        )


def _encode_whole_photos(encoder: RegionEncoder, dim: int, batch: Sequence[ImageRegions]) -> Tensor:
    """(R, D) unit vectors of all regions of the batch, by one forward pass per photo that has some."""
    vectors = []
    for regions in batch:
        if regions.image is None and len(regions):
            raise ConfigError(
                f"{regions.name or 'an image'} came without pixels, but {type(encoder).__name__} encodes whole photos. "
                "Leave CropRegions out of the test pipeline"
            )
        if regions.image is not None and len(regions):
            vectors.append(encoder.encode_regions(regions.image, regions.boxes_xyxy))
    return torch.cat(vectors) if vectors else torch.zeros((0, dim))


def _scores_of(regions: ImageRegions) -> Tensor:
    """(R,) box scores; ones when the boxes are given."""
    return torch.ones(len(regions)) if regions.box_scores is None else regions.box_scores


def _split(batch: Sequence[ImageRegions]) -> Iterator[tuple[ImageRegions, slice]]:
    """Each image's regions with their rows among those of the batch."""
    ends = np.cumsum([0, *map(len, batch)]).tolist()
    for regions, (start, end) in zip(batch, pairwise(ends), strict=True):
        yield regions, slice(start, end)
