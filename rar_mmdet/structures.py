"""What the stages hand to one another, and the letters used for shapes.

Shapes: B images, R regions of the batch, N shortlist depth, K candidates the ranker sees (K <= N), C categories,
D embedding size, S crop side in pixels, M emitted detections.

Words: `category_ids` are rows of the vocabulary, 0-based, and are MMDet's labels; `similarity` is a cosine;
`probs` are a softmax over the *full* vocabulary; `box_scores` come from the detector; `scores` is what a metric reads.
Boxes are `boxes_xyxy`, float32, in pixels of the original, upright image unless a name says `input`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.boxes import boxes_to_array
from rar_mmdet.errors import HostError, InvalidBoxError

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["ImageRegions", "RankStatus", "Ranking", "Recognition", "RegionCrops", "Shortlist"]

_Checked = TypeVar("_Checked", "Ranking", "ImageRegions")
_SHOWN = 10  # regions that `str(recognition)` spells out


class RankStatus(IntEnum):
    """How a region's ranking came about."""

    OK = 0  # the reply named every candidate once, or scored each of them
    PARTIAL = 1  # some of the reply was unusable; what was usable leads, the rest keeps retrieval order
    FALLBACK = 2  # nothing was usable; retrieval order stands
    SKIPPED = 3  # the ranker was not asked; retrieval order stands


@dataclass(frozen=True)
class Shortlist:
    """The N closest categories of each of R regions, best first, no repeats within a row."""

    category_ids: Tensor  # (R, N) int64 in [0, C)
    probs: Tensor  # (R, N) float32, softmax over the full vocabulary, non-increasing along N

    def __post_init__(self) -> None:
        ids, probs = tuple(self.category_ids.shape), tuple(self.probs.shape)
        if len(ids) != 2 or ids != probs:
            raise ValueError(f"Shortlist needs two equal (R, N) shapes, got category_ids {ids} and probs {probs}")
        if self.category_ids.dtype != torch.int64:
            raise ValueError(f"Shortlist.category_ids must be int64, got {self.category_ids.dtype}")

    def __len__(self) -> int:
        return self.category_ids.shape[0]

    @property
    def depth(self) -> int:
        """N, the number of categories in each row."""
        return self.category_ids.shape[1]

    def head(self, k: int) -> Shortlist:
        """The best `min(k, N)` categories of each region."""
        return Shortlist(self.category_ids[:, :k], self.probs[:, :k])

    def __getitem__(self, regions: Tensor | slice) -> Shortlist:
        """The rows of the given regions (a slice, an index tensor or a boolean mask)."""
        return Shortlist(self.category_ids[regions], self.probs[regions])


def _rows_of(whole: _Checked, names: Sequence[str], regions: Tensor | slice) -> _Checked:
    """A copy of a frozen dataclass with rows of the named fields; rows of what was checked are not checked again."""
    part = copy(whole)
    for name in names:
        values = getattr(whole, name)
        object.__setattr__(part, name, None if values is None else values[regions])
    return part


@dataclass(frozen=True)
class Ranking:
    """A ranker's opinion of the K candidates of each of R regions."""

    order: Tensor  # (R, K) int64; each row a permutation of 0..K-1: columns of the shortlist, best first
    log_probs: (
        Tensor | None
    )  # (R, K) float32; column j is shortlist column j; logsumexp of a row is 0; NaN: order alone
    status: Tensor  # (R,) int64, values of RankStatus
    replies: tuple[str | None, ...] | None = None  # R texts, where a model wrote one
    label_mass: Tensor | None = None  # (R,) float32 in [0, 1]: probability the model gave to any label; NaN: not known
    presence: Tensor | None = (
        None  # (R,) float32 in [0, 1]: that any of the K is right, as the model sees it; NaN: unknown
    )
    preferred: Tensor | None = None  # (R, S) int64: the best column by each of S orders of the prompt; -1: none

    def __post_init__(self) -> None:
        if self.order.ndim != 2 or self.order.dtype != torch.int64:
            raise ValueError(f"Ranking.order must be (R, K) int64, got {tuple(self.order.shape)} {self.order.dtype}")
        num_regions, k = self.order.shape
        if not torch.equal(
            self.order.sort(dim=1).values, torch.arange(k, device=self.order.device).repeat(num_regions, 1)
        ):
            raise ValueError("Ranking.order: every row must be a permutation of 0..K-1")
        if self.log_probs is not None and self.log_probs.shape != self.order.shape:
            raise ValueError(f"Ranking.log_probs {tuple(self.log_probs.shape)} != order {tuple(self.order.shape)}")
        for name, length in (("status", len(self.status)), ("replies", self._length(self.replies))):
            if length not in (None, num_regions):
                raise ValueError(f"Ranking.{name} must have {num_regions} entries, got {length}")
        for name, values in (("label_mass", self.label_mass), ("presence", self.presence)):
            if self._length(values) not in (None, num_regions):
                raise ValueError(f"Ranking.{name} must be ({num_regions},), got {values}")
        if self._length(self.preferred) not in (None, num_regions):
            raise ValueError(f"Ranking.preferred must be ({num_regions}, S), got {self.preferred}")

    @staticmethod
    def _length(values: Any) -> int | None:
        return None if values is None else len(values)

    def __len__(self) -> int:
        return self.order.shape[0]

    def __getitem__(self, regions: Tensor | slice) -> Ranking:
        """The rows of the given regions (a slice, an index tensor or a boolean mask)."""
        part = _rows_of(self, ("order", "log_probs", "status", "label_mass", "presence", "preferred"), regions)
        if self.replies is not None:
            rows = torch.arange(len(self))[regions].tolist()
            object.__setattr__(part, "replies", tuple(self.replies[row] for row in rows))
        return part

    @property
    def has_log_probs(self) -> Tensor:
        """(R,) bool: rows with log-probabilities, and not an order alone."""
        if self.log_probs is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return ~self.log_probs.isnan().any(dim=1)

    @property
    def has_opinion(self) -> Tensor:
        """(R,) bool: rows in which the ranker said something (status ok or partial)."""
        return (self.status == RankStatus.OK) | (self.status == RankStatus.PARTIAL)

    @staticmethod
    def identity(num_regions: int, k: int, status: RankStatus = RankStatus.SKIPPED) -> Ranking:
        """Retrieval order kept for every region."""
        order = torch.arange(k).repeat(num_regions, 1)
        return Ranking(order, None, torch.full((num_regions,), int(status), dtype=torch.int64))

    def spread(self, asked: Tensor) -> Ranking:
        """This ranking's rows at the places where `asked`, (R',) bool, is true; the others keep retrieval order."""
        k, rows = self.order.shape[1], asked.nonzero()[:, 0]
        whole = Ranking.identity(len(asked), k)
        whole.order[rows], whole.status[rows] = self.order.cpu(), self.status.cpu()
        log_probs = replies = None
        if self.log_probs is not None:
            # Where nobody was asked every candidate is as likely: the row has no opinion and is not fused.
            log_probs = torch.full((len(asked), k), -math.log(max(k, 1)))
            log_probs[rows] = self.log_probs.cpu().float()
        known: list[Tensor | None] = []
        for values in (self.label_mass, self.presence):
            known.append(None if values is None else torch.full((len(asked),), math.nan))
            if values is not None:
                known[-1][rows] = values.cpu().float()  # type: ignore[index]
        if self.replies is not None:
            by_row = dict(zip(rows.tolist(), self.replies, strict=True))
            replies = tuple(by_row.get(row) for row in range(len(asked)))
        preferred = None
        if self.preferred is not None:
            preferred = torch.full((len(asked), self.preferred.shape[1]), -1, dtype=torch.int64)
            preferred[rows] = self.preferred.cpu()
        return Ranking(whole.order, log_probs, whole.status, replies, known[0], known[1], preferred)


@dataclass(frozen=True)
class RegionCrops:
    """Crops made ahead of recognition, for instance in dataloader workers."""

    encoder: Tensor  # (R, 3, S, S) uint8 RGB, for the encoder
    ranker: Tensor | None = None  # (R, 3, S', S') uint8 RGB, for the ranker; None: cropped when asked
    # The croppers they were cut with; a recognizer refuses crops cut otherwise. None: not known.
    encoder_cropper: Any = None
    ranker_cropper: Any = None

    def __post_init__(self) -> None:
        if self.ranker is not None and len(self.ranker) != len(self.encoder):
            raise ValueError(
                f"RegionCrops: {len(self.encoder)} crops for the encoder, {len(self.ranker)} for the ranker"
            )

    def __len__(self) -> int:
        return len(self.encoder)

    def __getitem__(self, regions: Tensor | slice) -> RegionCrops:
        """The crops of the given regions."""
        ranker = None if self.ranker is None else self.ranker[regions]
        return replace(self, encoder=self.encoder[regions], ranker=ranker)

    def to(self, *args: Any, **kwargs: Any) -> RegionCrops:
        """As `Tensor.to`, for all crops."""
        ranker = None if self.ranker is None else self.ranker.to(*args, **kwargs)
        return replace(self, encoder=self.encoder.to(*args, **kwargs), ranker=ranker)


_SCORE_SLACK = 1e-3  # of scores computed in half precision


def _as_scores(values: Any, where: str) -> Tensor:
    """(R,) float32 scores on the CPU."""
    try:
        scores = torch.as_tensor(values, dtype=torch.float32).detach().reshape(-1).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidBoxError(f"{where}box_scores must be (R,) numbers, got {_shortened(values)}: {error}") from error
    numbers = scores.numpy()
    good = (numbers >= -_SCORE_SLACK) & (numbers <= 1 + _SCORE_SLACK)
    if not good.all():
        row = int(good.argmin())
        raise InvalidBoxError(
            f"{where}box_scores[{row}] is {float(scores[row])}; expected confidences in [0, 1] (of logits: sigmoid)"
        )
    return scores


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class ImageRegions:
    """What is to be recognised in one image. Lists and arrays are taken and turned into tensors.

    Attributes:
        image: (H, W, 3) uint8 RGB array or (3, H, W) uint8 tensor, upright; `None` where `crops` hold all that is
            needed.
        boxes_xyxy: (R, 4) float32 on the CPU, in pixels of the original, upright image.
        box_scores: (R,) float32 in [0, 1], the detector's confidence; `None` when the boxes are given.
        masks: (R, H, W) masks of the boxes, for a cropper whose background keeps masks sharp.
        crops: crops made ahead for exactly these boxes.
        class_scores: (R, C) float32 in [0, 1] on the CPU, the detector's own score of each category of the
            vocabulary, NaN where it knows no such class; for a recogniser with a `detector_fusion`.
        name: what messages and records call the image, such as its file.

    Raises:
        InvalidBoxError: another shape of boxes, or another number of scores, masks or crops than of boxes; a score
            that is not a number.
    """

    image: np.ndarray | Tensor | None
    boxes_xyxy: Tensor
    box_scores: Tensor | None = None
    masks: Tensor | None = None
    crops: RegionCrops | None = None
    class_scores: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        where = f"{self.name}: " if self.name else ""
        try:
            boxes = torch.from_numpy(boxes_to_array(self.boxes_xyxy)).float()
        except InvalidBoxError as error:
            raise InvalidBoxError(f"{where}{error}") from error
        object.__setattr__(self, "boxes_xyxy", boxes)
        if self.box_scores is not None:
            object.__setattr__(self, "box_scores", _as_scores(self.box_scores, where))
        if self.masks is not None:
            object.__setattr__(self, "masks", torch.as_tensor(self.masks))
        if self.class_scores is not None:
            object.__setattr__(self, "class_scores", torch.as_tensor(self.class_scores, dtype=torch.float32).cpu())
        for what in ("box_scores", "crops", "masks", "class_scores"):
            rows = getattr(self, what)
            if rows is not None and len(rows) != len(self):
                raise InvalidBoxError(f"{where}{len(self)} boxes but {len(rows)} {what}")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def __getitem__(self, regions: Tensor | slice) -> ImageRegions:
        """The given regions of the same image (a slice, an index tensor or a boolean mask)."""
        return _rows_of(self, ("boxes_xyxy", "box_scores", "masks", "crops", "class_scores"), regions)

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """Height and width in pixels; `None` without an image."""
        if self.image is None:
            return None
        shape = self.image.shape[:2] if isinstance(self.image, np.ndarray) else self.image.shape[-2:]
        return int(shape[0]), int(shape[1])


@dataclass(frozen=True)
class Recognition:
    """Everything known about the regions of one image, and the detections emitted from them.

    Scores are a softmax over the vocabulary, fused with the ranker's opinion: they say which of *these* names fits
    best. Every region has a `best` name; a region that is none of them has none in `names` where the emission has a
    threshold (docs/rankers.md, "None of these").
    """

    boxes_xyxy: Tensor  # (R, 4) float32, original pixels: the boxes that were recognised
    box_scores: Tensor  # (R,) float32 in [0, 1]; ones when the boxes are given
    shortlist: Shortlist  # (R, N)
    ranking: Ranking  # (R, K)
    fused: Tensor  # (R, N) float32: score of each shortlist column after ranking
    scores: Tensor  # (M,) float32, descending: the emitted detections
    category_ids: Tensor  # (M,) int64
    region_ids: Tensor  # (M,) int64: which region each detection comes from
    category_names: tuple[str, ...]  # C names, in label order

    def __post_init__(self) -> None:
        num_regions, num_detections = len(self.boxes_xyxy), len(self.scores)
        for name, rows in (("box_scores", self.box_scores), ("shortlist", self.shortlist), ("ranking", self.ranking)):
            if len(rows) != num_regions:
                raise ValueError(f"Recognition: {num_regions} boxes but {len(rows)} rows of {name}")
        if self.fused.shape != self.shortlist.probs.shape:
            raise ValueError(f"Recognition.fused {tuple(self.fused.shape)} != {tuple(self.shortlist.probs.shape)}")
        if {len(self.category_ids), len(self.region_ids)} != {num_detections}:
            raise ValueError("Recognition: scores, category_ids and region_ids must have the same length")

    def __len__(self) -> int:
        """R, the number of regions."""
        return len(self.boxes_xyxy)

    def __getitem__(self, regions: Tensor | Sequence[int] | slice) -> Recognition:
        """The given regions and their detections."""
        rows = torch.arange(len(self))[regions if isinstance(regions, slice) else torch.as_tensor(regions)]
        place = torch.full((len(self),), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        kept = place[self.region_ids.cpu()] >= 0
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[rows],
            box_scores=self.box_scores[rows],
            shortlist=self.shortlist[rows],
            ranking=self.ranking[rows],
            fused=self.fused[rows],
            scores=self.scores[kept],
            category_ids=self.category_ids[kept],
            region_ids=place[self.region_ids[kept]],
        )

    @property
    def ranked_ids(self) -> Tensor:
        """(R, K) int64: category ids of the candidates in the ranker's order."""
        k = self.ranking.order.shape[1]
        return self.shortlist.category_ids[:, :k].gather(1, self.ranking.order.to(self.shortlist.category_ids.device))

    def best(self, k: int = 1) -> Shortlist:
        """The k best categories of each region by fused score; equal scores keep retrieval order."""
        scores, columns = self.fused.sort(dim=1, descending=True, stable=True)
        ids = self.shortlist.category_ids.gather(1, columns[:, :k])
        return Shortlist(ids, scores[:, :k].clamp(0, 1))

    @property
    def best_ids(self) -> Tensor:
        """(R,) int64: the best category of each region."""
        return self.best().category_ids[:, 0]

    @property
    def best_scores(self) -> Tensor:
        """(R,) float32 in [0, 1]: the fused score of each region's best category."""
        return self.best().probs[:, 0]

    @property
    def names(self) -> list[str | None]:
        """R names: the best that was emitted for each region; `None` where nothing was."""
        found: list[str | None] = [None] * len(self)
        for region, label in zip(self.region_ids.tolist(), self.category_ids.tolist(), strict=True):
            found[region] = found[region] or self.category_names[label]  # detections come best first
        return found

    @property
    def best_names(self) -> list[str]:
        """R names: the best of each region."""
        return [self.category_names[i] for i in self.best_ids.tolist()]

    @overload
    def top(self) -> list[tuple[str, float]]: ...
    @overload
    def top(self, k: int) -> list[list[tuple[str, float]]]: ...

    def top(self, k: int | None = None) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """(name, score) of each region's best category, in the order of the boxes; with `k` a list of its k best."""
        if k is not None and (not isinstance(k, int) or k < 1):
            raise ValueError(f"top(k): k must be a whole number of at least 1, got {_shortened(k)}")
        best = self.best(k or 1)
        rows = [
            [(self.category_names[i], score) for i, score in zip(ids, scores, strict=True)]
            for ids, scores in zip(best.category_ids.tolist(), best.probs.tolist(), strict=True)
        ]
        return [row[0] for row in rows] if k is None else rows

    def filter(self, min_score: float) -> Recognition:
        """The regions whose best fused score is at least `min_score`."""
        return self[self.best_scores >= min_score]

    def draw(self, image: Any, min_score: float = 0.0) -> PIL.Image.Image:
        """The image with each region's box and best name on it, as a PIL image.

        Args:
            image: anything `rar_mmdet.files.read_image` takes: a path, an array, a PIL image.
            min_score: regions below it are left out.
        """
        from rar_mmdet.drawing import draw_regions

        kept = self.filter(min_score)
        labels = [f"{name} {score:.0%}" for name, score in kept.top()]
        return draw_regions(image, kept.boxes_xyxy, labels, kept.best_ids.tolist())

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The emitted detections as records of a COCO result file.

        Args:
            image_id: id of this image in the annotation file.
            category_ids: C ids of the categories there, in label order; `None`: 1, 2, 3, ...
        """
        if category_ids is not None and len(category_ids) != len(self.category_names):
            raise ValueError(f"to_coco: {len(category_ids)} category ids for {len(self.category_names)} names")
        boxes = self.boxes_xyxy.cpu().double()[self.region_ids.cpu()]
        boxes_xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        return [
            {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": box,
                "score": min(score, 1.0),
            }
            for label, box, score in zip(
                self.category_ids.tolist(), boxes_xywh.tolist(), self.scores.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """The emitted detections as `supervision.Detections`, names in `data["class_name"]`.

        Raises:
            HostError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise HostError(
                f"to_supervision() needs the package supervision, which cannot be imported ({error}): pip install "
                "supervision   (or take to_coco())"
            ) from error

        labels = self.category_ids.cpu().numpy()
        return supervision.Detections(
            xyxy=self.boxes_xyxy.cpu()[self.region_ids.cpu()].numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=labels,
            data={"class_name": np.array([self.category_names[i] for i in labels.tolist()])},
        )

    def __repr__(self) -> str:
        lines = [f"Recognition of {len(self)} regions"]
        for box, row in zip(self.boxes_xyxy[:_SHOWN].tolist(), self[:_SHOWN].top(2), strict=True):
            corners = ", ".join(f"{v:.0f}" for v in box)
            lines.append(f"  [{corners}]  " + ", ".join(f"{name} {score:.1%}" for name, score in row))
        if len(self) > _SHOWN:
            lines.append(f"  ... and {len(self) - _SHOWN} more")
        return "\n".join(lines)
