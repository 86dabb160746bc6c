"""A ranker's temperature and weight in the fusion, and when not to ask it, from regions whose category is known.

Every annotated box goes through the recogniser like any other region, photo by photo; what is kept of it are numbers,
those of the shortlists on disk, so that memory does not grow with the crops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.calibration.annotated import AnnotatedRegions
from rar_mmdet.emission import Emitted
from rar_mmdet.errors import RarError
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.fusion import Fusion
from rar_mmdet.rankers.calibration import (
    decisive_margin,
    fit_temperature,
    fit_weight,
    fused_log_probs,
    negative_log_likelihood,
)
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.structures import ImageRegions, Ranking, Recognition, Shortlist

__all__ = ["AskAboutAll", "Opinions", "ask_about", "fit", "labels_of", "recognised"]

REGIONS_TOGETHER = 64  # recognised together; bounds memory


@dataclass(frozen=True)
class AskAboutAll:
    """An emission that emits nothing: what is wanted are the ranker's opinions, of every region."""

    depth: int

    def select(self, scores: Tensor, category_ids: Tensor, boxes_xyxy: Tensor, box_scores: Tensor) -> Emitted:
        """No detection."""
        none = torch.zeros(0, dtype=torch.int64)
        return Emitted(none, none, torch.zeros(0))

    def can_reach(self, shortlist: Shortlist, num_candidates: int, box_scores: Tensor) -> Tensor:
        """Every region."""
        return torch.ones(len(shortlist), dtype=torch.bool)


@dataclass(frozen=True)
class Opinions:
    """What retrieval and ranker say about R annotated regions."""

    truth: Tensor  # (R,) int64 labels
    ids: NDArray[np.int32]  # (R, N) labels, best first; on disk
    probs: NDArray[np.float32]  # (R, N); on disk
    ranking: Ranking  # (R, K)

    def shortlist(self, rows: slice, depth: int | None = None) -> Shortlist:
        """The N, or the best `depth`, categories of some regions."""
        ids, probs = np.array(self.ids[rows, :depth], dtype=np.int64), np.array(self.probs[rows, :depth])
        return Shortlist(torch.from_numpy(ids), torch.from_numpy(probs))

    @property
    def candidates(self) -> Shortlist:
        """(R, K): what the ranker was shown."""
        return self.shortlist(slice(None), self.ranking.order.shape[1])

    @property
    def target(self) -> Tensor:
        """(R,) column of the truth among the candidates, -1 where it is not."""
        hit = self.candidates.category_ids == self.truth[:, None]
        return torch.where(hit.any(1), hit.float().argmax(1), -1)

    def fused(self, fusion: Fusion, regions: AnnotatedRegions) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For every image its number, and the fused (R, N) scores and labels of its regions."""
        for image in range(len(regions.files)):
            rows = regions.rows(image)
            found = self.shortlist(rows)
            yield image, fusion(found, self.ranking[rows]), found.category_ids


def labels_of(regions: AnnotatedRegions, categories: Any) -> Tensor:
    """(R,) int64: the label of each region's annotated category, in the order of the file."""
    label = {category_id: index for index, category_id in enumerate(label_order(categories))}
    return torch.tensor([label[record["category_id"]] for record in regions.annotations], dtype=torch.int64)


def ask_about(recognizer: RegionRecognizer, regions: AnnotatedRegions, truth: Tensor, folder: Path) -> Opinions:
    """Recognise every region, with a bar; the shortlists go to two files in `folder`.

    Args:
        recognizer: with `AskAboutAll` as its emission, and a ranker.
        regions: the annotated boxes.
        truth: (R,) their labels.
        folder: an existing folder.
    """
    depth = min(recognizer.shortlist_depth, len(recognizer.category_names))
    shape = (len(regions), depth)
    ids = np.lib.format.open_memmap(folder / "ids.npy", mode="w+", dtype=np.int32, shape=shape)
    probs = np.lib.format.open_memmap(folder / "probs.npy", mode="w+", dtype=np.float32, shape=shape)
    rankings: list[Ranking] = []
    for own, found in recognised(recognizer, regions, "ask"):
        ids[own], probs[own] = found.shortlist.category_ids.numpy(), found.shortlist.probs.numpy()
        rankings.append(found.ranking)
    return Opinions(truth, ids, probs, _joined(rankings))


def recognised(
    recognizer: RegionRecognizer, regions: AnnotatedRegions, told: str
) -> Iterator[tuple[slice, Recognition]]:
    """What is found in each image, with the rows of its regions, behind a bar."""
    with tqdm(total=len(regions), desc=told, unit="region", disable=None) as bar:
        for images, rows in regions.parts(REGIONS_TOGETHER):
            batch = [ImageRegions(regions.photo(i), _boxes(regions, i), name=str(regions.files[i])) for i in images]
            start = rows.start
            for found in recognizer.recognize(batch):
                own = slice(start, start + len(found))
                yield own, found
                start = own.stop
            bar.update(rows.stop - rows.start)


def _boxes(regions: AnnotatedRegions, image: int) -> Tensor:
    return torch.from_numpy(regions.boxes_xyxy[regions.rows(image)]).float()


def _joined(parts: list[Ranking]) -> Ranking:
    """One ranking of all rows; those of a part without log-probabilities are an order alone."""
    log_probs = None
    if any(part.log_probs is not None for part in parts):
        empty = [torch.full(part.order.shape, torch.nan) for part in parts]
        log_probs = torch.cat(
            [none if part.log_probs is None else part.log_probs for part, none in zip(parts, empty, strict=True)]
        )
    nothing = [torch.full((len(part),), torch.nan) for part in parts]
    mass, presence = (
        torch.cat([none if values is None else values for values, none in zip(column, nothing, strict=True)])
        for column in ([part.label_mass for part in parts], [part.presence for part in parts])
    )
    order, status = torch.cat([part.order for part in parts]), torch.cat([part.status for part in parts])
    return Ranking(order, log_probs, status, None, mass, presence)


def fit(opinions: Opinions) -> dict[str, Any]:
    """Temperature, weight and margin, with the likelihoods before and after.

    Temperature and weight maximise the likelihood of the truth among the candidates; regions whose truth is not among
    them, or of which the ranker gave no log-probabilities, say nothing about either.

    Raises:
        RarError: no region says anything.
    """
    target, ranking, probs = opinions.target, opinions.ranking, opinions.candidates.probs
    scored = ranking.has_opinion & ranking.has_log_probs
    usable = (target >= 0) & scored
    k = probs.shape[1]
    if k < 2 or ranking.log_probs is None or not usable.any():
        raise RarError(
            f"{int((target >= 0).sum())} of {len(target)} regions have their truth among the K={k} candidates and "
            f"{int(scored.sum())} were scored by the ranker; a fit needs some with both, and K >= 2"
        )
    log_p, log_q, wanted = ranking.log_probs[usable], probs[usable].log(), target[usable]
    temperature = fit_temperature(log_p, wanted)
    weight = fit_weight(log_q, log_p / temperature, wanted)
    both = fused_log_probs(probs.log(), ranking.log_probs.double().nan_to_num(0.0) / temperature, weight)
    answered = torch.where(scored, both.argmax(1), ranking.order[:, 0])
    margin, saving = decisive_margin(probs, answered, target)
    return {
        "regions": len(target),
        "used": int(usable.sum()),
        "temperature": temperature,
        "alpha": weight,
        "decisive_margin": margin if saving else None,  # none is large enough
        "saving": saving,
        "nll_retrieval": negative_log_likelihood(log_q, wanted),
        "nll_ranker": negative_log_likelihood(log_p, wanted),
        "nll_ranker_tempered": negative_log_likelihood(log_p / temperature, wanted),
        "nll_fused": negative_log_likelihood(fused_log_probs(log_q, log_p / temperature, weight), wanted),
        "top1_retrieval": (target == 0).double().mean().item(),
        "top1_fused": (answered == target).double().mean().item(),
        "recall_at_k": (target >= 0).double().mean().item(),
    }


def changes_of(result: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a fit changes in the settings of a recogniser: the fusion, and whom the ranker is asked about."""
    old = settings.get("fusion") or {}
    fusion: dict[str, Any] = {"type": "LogLikFusion"}
    fusion |= {"alpha": round(result["alpha"], 3), "temperature": round(result["temperature"], 3)}
    if old.get("type") == "LogLikFusion":
        fusion = {**old, **fusion}
    elif old:
        fusion["_delete_"] = True
    margin = result["decisive_margin"]
    # Rounded up: a hair below the margin that was found, regions would be spared that were not looked at.
    limits = {"decisive_margin": None if margin is None else float(np.ceil(margin * 1e4) / 1e4)}
    return {"fusion": fusion, "ranker": {"limits": limits}}
