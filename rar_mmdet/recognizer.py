"""The whole method in one place: crop, encode, retrieve, rank, fuse, emit. Needs no MMDetection."""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.emission import Emission, can_reach, emit
from rar_mmdet.errors import ConfigError, InvalidBoxError, VocabularyError
from rar_mmdet.fusion import Fusion, LogLikFusion
from rar_mmdet.memory import clean_name
from rar_mmdet.regions import find_invalid_boxes
from rar_mmdet.structures import Ranking, Recognition, RegionCrops, Shortlist

__all__ = ["RegionRecognizer", "crop_regions", "cropper_settings"]

logger = logging.getLogger(__name__)


@functools.cache
def _warn_without_masks(background: str) -> None:
    logger.warning(
        "%s got no masks and keeps whole boxes sharp. Give masks to RegionRecognizer; in a test pipeline "
        "LoadAnnotations(with_mask=True), ProposalsFromAnnotations(with_masks=True) and CropRegions (docs/regions.md)",
        background,
    )


def crop_regions(cropper: Any, image: Any, boxes_xyxy: Tensor, masks: Any = None) -> Tensor:
    """`cropper.crop`; warns, once in a process, when its background is made for masks and there are none."""
    background = getattr(cropper, "background", None)
    if masks is None and len(boxes_xyxy) and getattr(background, "uses_mask", False):
        _warn_without_masks(type(background).__name__)
    return cropper.crop(image, boxes_xyxy, masks=masks)


def cropper_settings(cropper: Any) -> dict[str, str]:
    """Every setting of a cropper as text: equal where the settings are, in whatever process."""
    return {name: _as_text(value) for name, value in sorted(vars(cropper).items())}


def _as_text(value: Any) -> str:
    """A part by its class and its settings, for its `repr` may be its address; anything else by its `repr`."""
    if not hasattr(value, "__dict__"):
        return repr(value)
    return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in cropper_settings(value).items())})"


def _rows(values: Any, rows: Any) -> Any:
    return None if values is None else values[rows]


class RegionRecognizer:
    """Names for boxes: RAR (arXiv 2403.13805, Figure 2) over any vocabulary.

    Args:
        cropper: `RegionCropper` for what the encoder sees.
        encoder: `OpenClipEncoder`, or anything with its methods.
        memory: a `CategoryMemory`, or a recipe with `prepare(encoder, category_names)` that builds or loads one at
            first use.
        category_names: the vocabulary, in label order. Names are for prompts and people; identity is the index.
        ranker: re-orders the shortlist; `None` for retrieval only.
        ranker_cropper: `RegionCropper` for what the ranker sees; `None`: `cropper`'s policies at the ranker's size.
        fusion: how both opinions become a score. `LogLikFusion()` when `None`.
        emission: which pairs become detections.
        shortlist_depth: N. At least `emission.max_per_image`, or detections that belong in the image's best are lost.
        num_candidates: K, the categories the ranker sees (5 in the paper, Table 5).
        on_bad_box: 'raise' or 'skip' (counted and reported) for boxes that are not finite, empty, inverted or outside.
        region_batch: regions cropped and encoded at a time; bounds memory.
    """

    def __init__(
        self,
        *,
        cropper: Any,
        encoder: Any,
        memory: Any,
        category_names: Sequence[str],
        ranker: Any = None,
        ranker_cropper: Any = None,
        fusion: Fusion | None = None,
        emission: Emission | None = None,
        shortlist_depth: int = 300,
        num_candidates: int = 5,
        on_bad_box: str = "raise",
        region_batch: int = 256,
    ) -> None:
        if not category_names:
            raise VocabularyError("category_names is empty; give a list of names, a names file or an annotation file")
        if on_bad_box not in ("raise", "skip"):
            raise ValueError(f"on_bad_box must be 'raise' or 'skip', got {on_bad_box!r}")
        if num_candidates < 1 or shortlist_depth < num_candidates:
            raise ValueError(
                f"need 1 <= num_candidates <= shortlist_depth, got num_candidates={num_candidates} "
                f"and shortlist_depth={shortlist_depth}"
            )
        most = getattr(ranker, "max_candidates", None)
        if most is not None and num_candidates > most:
            raise ValueError(f"num_candidates={num_candidates}, but this ranker can tell at most {most} apart")
        self.cropper, self.encoder, self.ranker = cropper, encoder, ranker
        self.category_names = list(category_names)
        self.prompt_names = [clean_name(name) for name in self.category_names]
        self.fusion = fusion or LogLikFusion()
        self.emission = emission or Emission()
        self.shortlist_depth, self.num_candidates = shortlist_depth, num_candidates
        self.on_bad_box, self.region_batch = on_bad_box, region_batch
        self.counts: Counter[str] = Counter()
        self.device: torch.device | None = None
        self._memory_recipe, self._memory = memory, None if hasattr(memory, "prepare") else memory
        self._ranker_cropper = ranker_cropper

    @property
    def memory(self) -> Any:
        """The category memory; built or loaded on first access."""
        if self._memory is None:
            self._memory = self._memory_recipe.prepare(self.encoder, self.category_names)
        return self._memory

    @property
    def ranker_cropper(self) -> Any:
        """The cropper of the ranker, or `None` without a ranker."""
        if self._ranker_cropper is None and self.ranker is not None:
            self._ranker_cropper = self.cropper.with_size(self.ranker.crop_size)
        return self._ranker_cropper

    def to(self, device: torch.device | str) -> RegionRecognizer:
        """Use `device` for encoder and ranker; they load at the first prediction."""
        self.device = torch.device(device)
        return self

    def __call__(
        self, image: np.ndarray | Tensor, boxes_xyxy: Any, box_scores: Any = None, masks: Any = None
    ) -> Recognition:
        """Recognise the boxes of one image.

        Args:
            image: (H, W, 3) uint8 RGB array or (3, H, W) uint8 tensor.
            boxes_xyxy: (R, 4) numbers, original pixels.
            box_scores: (R,) in [0, 1], the detector's confidence; `None` for given boxes.
            masks: (R, H, W) boolean masks of the boxes, for a cropper whose background keeps masks sharp.

        Raises:
            InvalidBoxError: a box is not finite, empty, inverted or outside the image.
        """
        return self.recognize([image], [boxes_xyxy], None if box_scores is None else [box_scores], masks=[masks])[0]

    @torch.inference_mode()
    def recognize(
        self,
        images: Sequence[np.ndarray | Tensor | None],
        boxes_xyxy: Sequence[Any],
        box_scores: Sequence[Any] | None = None,
        crops: Sequence[RegionCrops | None] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> list[Recognition]:
        """Recognise the boxes of several images; their crops share encoder and ranker batches.

        Args:
            images: B images as in `__call__`; may be `None` where `crops` holds all that is needed.
            boxes_xyxy: B times (R_b, 4).
            box_scores: B times (R_b,) or `None`.
            crops: B times crops made ahead for exactly these boxes, or `None`.
            masks: B times (R_b, H_b, W_b) as in `__call__`, or `None`.

        Raises:
            InvalidBoxError: as in `__call__`, or another number of scores, crops or masks than of boxes.
            ConfigError: crops were made with other settings than those of this recognizer's croppers.
        """
        self._load()
        crops = list(crops) if crops is not None else [None] * len(images)
        masks = masks if masks is not None else [None] * len(images)
        masks = [None if m is None else torch.as_tensor(m) for m in masks]
        boxes = [torch.as_tensor(b, dtype=torch.float32).reshape(-1, 4).cpu() for b in boxes_xyxy]
        given = (
            [torch.ones(len(b)) for b in boxes]
            if box_scores is None
            else [torch.as_tensor(s, dtype=torch.float32).reshape(-1).cpu() for s in box_scores]
        )
        for i, image in enumerate(images):
            self._check_settings(crops[i])
            keep = self._good_boxes(i, image, boxes[i], given[i], crops[i], masks[i])
            if keep is not None:
                boxes[i], given[i] = boxes[i][keep], given[i][keep]
                crops[i], masks[i] = _rows(crops[i], keep), _rows(masks[i], keep)
        queries = self._encode(images, boxes, crops, masks)
        shortlist = self.memory.search(queries, self.shortlist_depth)
        shortlist = Shortlist(shortlist.category_ids.cpu(), shortlist.probs.cpu())
        ranking = self._rank(images, boxes, given, crops, masks, shortlist)
        fused = self.fusion(shortlist, ranking)
        self.counts["images"] += len(images)
        self.counts["regions"] += len(shortlist)
        results, start = [], 0
        for image_boxes, image_scores in zip(boxes, given, strict=True):
            rows = slice(start, start + len(image_boxes))
            start += len(image_boxes)
            results.append(self._pack(image_boxes, image_scores, shortlist[rows], ranking, fused, rows))
        return results

    def report(self, judge: bool = True) -> dict[str, Any]:
        """What was done so far: counts of images, regions, skipped boxes by reason, and the ranker's own report.

        Args:
            judge: whether a ranker with too many unusable answers is an error.

        Raises:
            RankerError: more than its `max_fallback_rate` of the asked regions got no usable answer.
        """
        report: dict[str, Any] = dict(self.counts)
        if judge and hasattr(self.ranker, "judge"):
            self.ranker.judge()
        if self.ranker is not None and hasattr(self.ranker, "report"):
            report["ranker"] = self.ranker.report()
        return report

    def _load(self) -> None:
        if self.device is None:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for part in (self.encoder, self.ranker):
            if hasattr(part, "load"):
                part.load(self.device)

    def _check_settings(self, crops: RegionCrops | None) -> None:
        if crops is None:
            return
        for name, made_with in (("cropper", crops.encoder_settings), ("ranker_cropper", crops.ranker_settings)):
            if made_with is None or (name == "ranker_cropper" and self.ranker is None):
                continue
            own = cropper_settings(getattr(self, name))
            different = [key for key in {**own, **made_with} if own.get(key) != made_with.get(key)]
            if different:
                raise ConfigError(
                    f"crops were made with another {name} than the recognizer's: "
                    + "; ".join(f"{key}={made_with.get(key)} is not {own.get(key)}" for key in different)
                    + f" (the recognizer's). Give CropRegions and the recognizer the same {name}=dict(...)"
                )

    def _good_boxes(
        self, index: int, image: Any, boxes: Tensor, scores: Tensor, crops: RegionCrops | None, masks: Tensor | None
    ) -> Tensor | None:
        """Rows of the boxes that can be cropped, `None` for all; what goes with the boxes must be as many."""
        ready = None if crops is None else crops.encoder
        for name, rows in (("box_scores", scores), ("crops", ready), ("masks", masks)):
            if rows is not None and len(rows) != len(boxes):
                raise InvalidBoxError(f"image {index} of the batch: {len(boxes)} boxes but {len(rows)} {name}")
        if image is None:
            return None
        image_hw = tuple(image.shape[:2]) if isinstance(image, np.ndarray) else tuple(image.shape[-2:])
        bad = find_invalid_boxes(boxes, image_hw)
        if not bad:
            return None
        if self.on_bad_box == "raise":
            first = min(bad)
            raise InvalidBoxError(
                f"image {index} of the batch ({image_hw[1]}x{image_hw[0]} px): {len(bad)} of {len(boxes)} boxes cannot "
                f"be cropped; box {first} = {boxes[first].tolist()}: {bad[first]}. Boxes are xyxy in pixels of the "
                "original image; use on_bad_box='skip' to drop and count such boxes"
            )
        for reason in bad.values():
            # The reason without its particulars, such as the size of the photo.
            self.counts[f"skipped box: {re.split(r'[:(]| the ', reason)[0].strip()}"] += 1
        return torch.tensor([i for i in range(len(boxes)) if i not in bad], dtype=torch.int64)

    def _chunks(
        self, cropper: Any, image: Any, boxes: Tensor, masks: Tensor | None, ready: Tensor | None = None
    ) -> Iterator[Tensor]:
        for start in range(0, len(boxes), self.region_batch):
            rows = slice(start, start + self.region_batch)
            yield ready[rows] if ready is not None else crop_regions(cropper, image, boxes[rows], _rows(masks, rows))

    def _encode(
        self,
        images: Sequence[Any],
        boxes: list[Tensor],
        crops: list[RegionCrops | None],
        masks: list[Tensor | None],
    ) -> Tensor:
        """(R, D) unit vectors of all boxes of the batch; encoder batches are filled across images."""
        vectors, pending, waiting = [], [], 0
        for image, image_boxes, ready, kept in zip(images, boxes, crops, masks, strict=True):
            for chunk in self._chunks(self.cropper, image, image_boxes, kept, ready.encoder if ready else None):
                pending.append(chunk)
                waiting += len(chunk)
                if waiting >= self.region_batch:
                    vectors.append(self.encoder.encode_images(torch.cat(pending)))
                    pending, waiting = [], 0
        if pending or not vectors:
            size = self.cropper.size
            batch = torch.cat(pending) if pending else torch.zeros((0, 3, size, size), dtype=torch.uint8)
            vectors.append(self.encoder.encode_images(batch))
        return torch.cat(vectors)

    def _rank(
        self,
        images: Sequence[Any],
        boxes: list[Tensor],
        box_scores: list[Tensor],
        crops: list[RegionCrops | None],
        masks: list[Tensor | None],
        shortlist: Shortlist,
    ) -> Ranking:
        """Ask the ranker about the regions that can matter; the others keep retrieval order and count as skipped."""
        candidates = shortlist.head(self.num_candidates)
        if self.ranker is None or len(shortlist) == 0:
            return Ranking.identity(len(shortlist), candidates.depth)
        ranker_crops, ask, start = [], [], 0
        size = self.ranker_cropper.size
        for image, image_boxes, scores, ready, kept in zip(images, boxes, box_scores, crops, masks, strict=True):
            rows = slice(start, start + len(image_boxes))
            start += len(image_boxes)
            wanted = can_reach(shortlist[rows], self.num_candidates, scores, self.emission)
            ask.append(wanted)
            if ready is not None and ready.ranker is not None:
                ranker_crops.append(ready.ranker)
                continue
            out = torch.zeros((len(image_boxes), 3, size, size), dtype=torch.uint8)
            asked = self._chunks(self.ranker_cropper, image, image_boxes[wanted], _rows(kept, wanted))
            parts = [c.cpu() for c in asked]
            if parts:
                out[wanted] = torch.cat(parts)
            ranker_crops.append(out)
        return self.ranker.rank(torch.cat(ranker_crops), candidates, self.prompt_names, ask=torch.cat(ask))

    def _pack(
        self, boxes: Tensor, box_scores: Tensor, shortlist: Shortlist, ranking: Ranking, fused: Tensor, rows: slice
    ) -> Recognition:
        flat, scores = emit(fused[rows], shortlist.category_ids, boxes, box_scores, self.emission)
        log_probs = None if ranking.log_probs is None else ranking.log_probs[rows]
        return Recognition(
            boxes_xyxy=boxes,
            box_scores=box_scores,
            shortlist=shortlist,
            ranking=Ranking(ranking.order[rows], log_probs, ranking.status[rows]),
            scores=scores,
            category_ids=shortlist.category_ids.flatten()[flat],
            region_ids=flat // max(shortlist.depth, 1),
        )
