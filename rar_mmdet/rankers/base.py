"""What a ranker is, and the two that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rar_mmdet.rankers.parsing import parse_ranking
from rar_mmdet.structures import Ranking, RankStatus, Shortlist

__all__ = ["IdentityRanker", "Ranker", "ScriptedRanker"]


class Ranker(Protocol):
    """Re-orders the K candidates of each region. A plain object that loads at the first prediction."""

    @property
    def crop_size(self) -> int:
        """S, the side in pixels of the crops it wants."""
        ...

    def rank(
        self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str], ask: Tensor | None = None
    ) -> Ranking:
        """An order of the shortlist's K columns for each region.

        Args:
            crops: (R, 3, S, S) uint8 RGB, on the CPU.
            shortlist: K candidates per region, best first.
            category_names: prompt name of every category of the vocabulary, by index.
            ask: (R,) bool; regions that are `False` are skipped and keep retrieval order. `None` asks about all.

        Returns:
            Ranking of shape (R, K); `log_probs` column j belongs to shortlist column j, logsumexp of a row is 0.
        """
        ...


class IdentityRanker:
    """Keeps retrieval order; the ablation that leaves ranking out."""

    def __init__(self, *, crop_size: int = 224) -> None:
        self.crop_size = crop_size

    def missing_assets(self) -> list[str]:
        """Nothing to download."""
        return []

    def load(self, device: torch.device | str | None = None) -> None:
        """Nothing to load."""

    def rank(
        self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str], ask: Tensor | None = None
    ) -> Ranking:
        """Every region is skipped."""
        return Ranking.identity(len(shortlist), shortlist.depth)

    def report(self) -> dict[str, Any]:
        """No counts to give."""
        return {"ask": "identity"}


class ScriptedRanker:
    """Reads prepared replies instead of asking a model, in turn and from the start again; for tests.

    Args:
        replies: texts as a model might write them; each goes through `parse_ranking`.
        crop_size: S, what `rank` pretends to want.
    """

    def __init__(self, *, replies: Sequence[str], crop_size: int = 64) -> None:
        if isinstance(replies, str) or not replies:
            raise ValueError(f"ScriptedRanker.replies must be a non-empty list of texts, got {replies!r}")
        self.replies, self.crop_size = list(replies), crop_size
        self.counts = {status.name.lower(): 0 for status in RankStatus}
        self._turn = 0

    def missing_assets(self) -> list[str]:
        """Nothing to download."""
        return []

    def load(self, device: torch.device | str | None = None) -> None:
        """Nothing to load."""

    def rank(
        self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str], ask: Tensor | None = None
    ) -> Ranking:
        """Parse the next reply for every region that is asked about."""
        ranking = Ranking.identity(len(shortlist), shortlist.depth)
        order, status = ranking.order, ranking.status
        for row, ids in enumerate(shortlist.category_ids.tolist()):
            if ask is None or ask[row]:
                reply = self.replies[self._turn % len(self.replies)]
                self._turn += 1
                parsed = parse_ranking(reply, [category_names[i] for i in ids])
                order[row], status[row] = torch.tensor(parsed.order, dtype=torch.int64), int(parsed.status)
            self.counts[RankStatus(int(status[row])).name.lower()] += 1
        return Ranking(order, None, status)

    def report(self) -> dict[str, Any]:
        """Regions by status."""
        return {"ask": "scripted", **self.counts}
