"""How much a detector's own class scores and its sureness of boxes are worth, from photos whose objects are known.

The detector finds boxes, retrieval names them, and annotated objects say which names are right. `LogPool`'s weights
maximise the likelihood of the truth; the weight of the box scores is the one with the best AP. The ranker is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.calibration.annotated import AnnotatedRegions
from rar_mmdet.calibration.crops import ScoredImage
from rar_mmdet.detectors import Detected, Detector, class_scores, rows_of_names
from rar_mmdet.detectors.selection import RegionSelection
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.files.images import photo_hw
from rar_mmdet.fusion import DetectorFusion, LogPool
from rar_mmdet.rankers.calibration import negative_log_likelihood
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.scoring.recognition import match_truth
from rar_mmdet.structures import ImageRegions, Shortlist

__all__ = ["FoundRegions", "find_boxes", "fit_pool", "name_boxes", "with_box_weight"]

PHOTOS_TOGETHER = 8  # detected together; bounds memory
LEAST_UNKNOWN = 1e-4  # of `LogPool.unknown` (ours): below, other names are ruled out
REGIONS_FOR_FIT = 20_000  # of which the likelihood is taken: two numbers are fitted (ours)


@dataclass(frozen=True)
class FoundRegions:
    """The R boxes that a detector found in I photos, and what retrieval and the detector call them."""

    starts: NDArray[np.int64]  # (I + 1,): those of photo i are rows starts[i] to starts[i + 1]
    boxes_xyxy: Tensor  # (R, 4)
    box_scores: Tensor  # (R,)
    truth: Tensor  # (R,) int64 label of the object it covers, -1 for none
    ids: NDArray[np.int32]  # (R, N) labels, best first; on disk
    probs: NDArray[np.float32]  # (R, N); on disk
    class_scores: NDArray[np.float32]  # (R, N), of the detector; on disk

    def __len__(self) -> int:
        return len(self.truth)

    def pooled(self, fusion: DetectorFusion | None) -> Iterator[ScoredImage]:
        """The boxes of each photo with the scores that both give; without a fusion those of retrieval alone."""
        for image in range(len(self.starts) - 1):
            rows = slice(int(self.starts[image]), int(self.starts[image + 1]))
            found, own = self.shortlist(rows)
            found = found if fusion is None else fusion(found, own)
            yield ScoredImage(image, self.boxes_xyxy[rows], self.box_scores[rows], found.probs, found.category_ids)

    def shortlist(self, rows: slice | NDArray[np.int64]) -> tuple[Shortlist, Tensor]:
        """Retrieval's shortlist of some regions, and the detector's scores in its columns."""
        ids, probs = np.array(self.ids[rows], dtype=np.int64), np.array(self.probs[rows])
        own = torch.from_numpy(np.array(self.class_scores[rows]))
        return Shortlist(torch.from_numpy(ids), torch.from_numpy(probs)), own


def find_boxes(detector: Detector, selection: RegionSelection, regions: AnnotatedRegions) -> list[Detected]:
    """What the detector finds in each photo, with a bar."""
    found = []
    images = range(len(regions.files))
    with tqdm(total=len(images), desc="detect", unit="photo", disable=None) as bar:
        for start in images[::PHOTOS_TOGETHER]:
            batch = images[start : start + PHOTOS_TOGETHER]
            photos = [regions.photo(image) for image in batch]
            for photo, one in zip(photos, detector.detect(photos, [str(regions.files[i]) for i in batch]), strict=True):
                found.append(selection.merge(one, photo_hw(photo)))
            bar.update(len(batch))
    return found


def name_boxes(
    recognizer: RegionRecognizer, found: Sequence[Detected], regions: AnnotatedRegions, truth: Tensor, folder: Path
) -> FoundRegions:
    """Retrieve names for every box, with a bar; what is found goes to files in `folder`.

    Args:
        recognizer: without a ranker and a `detector_fusion`; its vocabulary has the labels of `truth`.
        found: of each photo.
        regions: the annotated objects.
        truth: (objects,) int64 their labels.
        folder: an existing folder.
    """
    names = recognizer.category_names
    rows_of = rows_of_names(found[0].names, names)
    starts = np.cumsum([0, *map(len, found)])
    shape = (int(starts[-1]), min(recognizer.shortlist_depth, len(names)))
    kinds: tuple[tuple[str, type], ...] = (("ids", np.int32), ("probs", np.float32), ("class_scores", np.float32))
    ids, probs, own = (
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape) for name, kind in kinds
    )
    labels = np.full(len(ids), -1, np.int64)
    for image, one in enumerate(tqdm(found, desc="retrieve", unit="photo", disable=None)):
        rows, objects = slice(int(starts[image]), int(starts[image + 1])), regions.rows(image)
        if not len(one):
            continue
        photo = ImageRegions(regions.photo(image), one.boxes_xyxy, one.scores, name=str(regions.files[image]))
        shortlist = recognizer.recognize([photo])[0].shortlist
        ids[rows], probs[rows] = shortlist.category_ids.numpy(), shortlist.probs.numpy()
        own[rows] = class_scores(one, names, rows_of).gather(1, shortlist.category_ids).numpy()
        labels[rows] = match_truth(one.boxes_xyxy.numpy(), regions.boxes_xyxy[objects], truth[objects].numpy())
    boxes, scores = torch.cat([one.boxes_xyxy for one in found]), torch.cat([one.scores for one in found])
    return FoundRegions(starts, boxes, scores, torch.from_numpy(labels), ids, probs, own)


def fit_pool(found: FoundRegions, floor: float = LogPool.floor) -> tuple[LogPool, dict[str, Any]]:
    """The `LogPool` that makes the truth most likely, over the boxes that cover an object; and what it is worth.

    Raises:
        RarError: no box covers an object whose name is in its shortlist.
    """
    covers = np.flatnonzero(found.truth.numpy() >= 0)
    used = covers[:: max(1, -(-len(covers) // REGIONS_FOR_FIT))]
    shortlist, own = found.shortlist(used)
    hit = shortlist.category_ids == found.truth[torch.from_numpy(used)][:, None]
    seen = hit.any(dim=1)
    if not seen.any():
        raise RarError(
            f"of {len(found)} boxes that the detector found {len(covers)} cover an annotated object, and none has its "
            "name in the shortlist: nothing can be fitted. Do the vocabulary and the annotations belong together?"
        )
    # Where softmax has underflowed the least positive number stands for it, or one such truth would decide all.
    log_q = shortlist.probs[seen].double().clamp_min(torch.finfo(torch.float32).tiny).log()
    own, target = own[seen], hit[seen].float().argmax(dim=1)

    weight, unknown = _most_likely(log_q, own, target, floor)
    pool = LogPool(round(weight, 3), float(f"{unknown:.3g}"), floor)
    after = pool(Shortlist(shortlist.category_ids[seen], shortlist.probs[seen]), own)
    truth = shortlist.category_ids[seen].gather(1, target[:, None])
    return pool, {
        "boxes": len(found),
        "covering": len(covers),
        "used": int(seen.sum()),
        "weight": pool.weight,
        "unknown": pool.unknown,
        "floor": floor,
        "known_truth": (~own.gather(1, target[:, None]).isnan()).double().mean().item(),
        "nll_retrieval": negative_log_likelihood(log_q, target),
        "nll_pooled": negative_log_likelihood(pool.logits(log_q, own), target),
        "top1_retrieval": (target == 0).double().mean().item(),
        "top1_pooled": (after.category_ids[:, :1] == truth).double().mean().item(),
    }


def _most_likely(log_q: Tensor, own: Tensor, target: Tensor, floor: float) -> tuple[float, float]:
    """`LogPool`'s weight and unknown that minimise the negative log-likelihood, by L-BFGS.

    It is convex in the weight w and w log(unknown) together (a log-sum-exp of linear functions), so that there is one
    minimum. Both are sigmoids of what is searched, which keeps them in their ranges.
    """
    log_d = LogPool(floor=floor).log_scores(own)
    other = own.isnan()
    least = float(np.log(LEAST_UNKNOWN))
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=100, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        weight, log_unknown = free[0].sigmoid(), least * free[1].sigmoid()
        logits = (1 - weight) * log_q + weight * torch.where(other, log_unknown, log_d)
        value = torch.nn.functional.cross_entropy(logits, target)
        value.backward()
        return value

    search.step(loss)
    weight, share = free.detach().sigmoid().tolist()
    return weight, float(np.exp(least * share))


def with_box_weight(emission: Any, weight: float) -> Any:
    """The emission with another weight of the box scores.

    Raises:
        ConfigError: it has none.
    """
    if not hasattr(emission, "box_score_weight"):
        raise ConfigError(
            f"{type(emission).__name__} has no box_score_weight, which is to be fitted; give the config TopPairs or "
            "BestPerRegion as its emission"
        )
    return replace(emission, box_score_weight=weight)
