"""What a ranker is, and the two that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError
from rar_mmdet.rankers.parsing import parse_ranking
from rar_mmdet.structures import Ranking, RankStatus, Shortlist

__all__ = ["IdentityRanker", "Ranker", "ScriptedRanker"]


class Ranker(Protocol):
    """Re-orders the K candidates of each region. A plain object that loads at the first prediction.

    A ranker of your own is a subclass with `crop_size` and `rank`; all else has a body here.
    """

    crop_size: int  # S, the side in pixels of the crops it wants
    max_candidates: int | None = None  # the largest K it can rank; None: any
    counts: Mapping[str, int] = MappingProxyType(
        {}
    )  # regions by status and questions by fate so far, as `judge` wants them

    def rank(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Ranking:
        """An order of the shortlist's K columns for each region; it gets only the regions it is asked about.

        Args:
            crops: (R, 3, S, S) uint8 RGB, on the CPU.
            shortlist: K candidates per region, best first.
            category_names: prompt name of every category of the vocabulary, by index.

        Returns:
            Ranking of shape (R, K); `log_probs` column j belongs to shortlist column j, logsumexp of a row is 0, or the
            row is NaN where the ranker gave an order alone.
        """
        ...

    def missing_assets(self) -> list[str]:
        """What has to be fetched before this ranker can run, one line each."""
        return []

    def load(self, device: torch.device | str | None = None) -> None:
        """Say where the model is to run."""

    def report(self) -> dict[str, Any]:
        """What was done so far, to be stored with the results (JSON types)."""
        return {}

    def judge(self, counts: Mapping[str, int] | None = None) -> None:
        """Refuse results that are not the ranker's.

        Args:
            counts: the `counts` of all processes, added up; `None` for this one's.

        Raises:
            RankerError: too many answers were unusable.
        """


class IdentityRanker(Ranker):
    """Keeps retrieval order; the ablation that leaves ranking out."""

    def __init__(self, *, crop_size: int = 224) -> None:
        self.crop_size = crop_size

    def rank(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Ranking:
        """Every region is skipped."""
        return Ranking.identity(len(shortlist), shortlist.depth)

    def report(self) -> dict[str, Any]:
        """No counts to give."""
        return {"ask": "identity"}


class ScriptedRanker(Ranker):
    """Reads prepared replies instead of asking a model, in turn and from the start again; for tests.

    Args:
        replies: texts as a model might write them; each goes through `parse_ranking`.
        crop_size: S, what `rank` pretends to want.
    """

    def __init__(self, *, replies: Sequence[str], crop_size: int = 64) -> None:
        if isinstance(replies, str) or not replies:
            raise ConfigError(f"ScriptedRanker.replies must be a non-empty list of texts, got {replies!r}")
        self.replies, self.crop_size = list(replies), crop_size
        self.counts: dict[str, int] = {status.name.lower(): 0 for status in RankStatus}
        self._turn = 0

    def rank(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Ranking:
        """Parse the next reply for every region."""
        order, status, replies = [], [], []
        for ids in shortlist.category_ids.tolist():
            reply = self.replies[self._turn % len(self.replies)]
            self._turn += 1
            parsed = parse_ranking(reply, [category_names[i] for i in ids])
            order.append(parsed.order)
            status.append(int(parsed.status))
            replies.append(reply)
            self.counts[parsed.status.name.lower()] += 1
        columns = torch.tensor(order, dtype=torch.int64).reshape(len(shortlist), shortlist.depth)
        return Ranking(columns, None, torch.tensor(status, dtype=torch.int64), replies=tuple(replies))

    def report(self) -> dict[str, Any]:
        """Regions by status."""
        return {"ask": "scripted", **self.counts}
