"""Names that take probability and are never emitted: what a region may be beside the names of the vocabulary.

A box that shows a curtain must be called something by a vocabulary of tools. With "curtain" among the background names
retrieval and ranker can say so, and what is left for the tools is little: a threshold leaves the region without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rar_mmdet.errors import ConfigError
from rar_mmdet.files import clean_name, read_vocabulary
from rar_mmdet.rankers.spelling import Spellings, normalise
from rar_mmdet.structures import Ranking, Shortlist

__all__ = ["BackgroundSource", "Candidates", "background_names", "show_background"]

BackgroundSource = str | Path | Sequence[str]
_LVIS_NAMES = Path(__file__).with_name("files") / "lvis_v1_names.json"


def background_names(source: BackgroundSource | None, category_names: Sequence[str]) -> tuple[str, ...]:
    """Background names without those of the vocabulary in another spelling, number or with a qualifier.

    Args:
        source: 'lvis' for the 1,203 names of LVIS v1; names, or a file of names, as `read_vocabulary` takes them.
        category_names: the vocabulary.

    Raises:
        ConfigError: the vocabulary says all of them.

    >>> background_names(["dogs", "Car_(automobile)", "tree"], ["dog", "car"])
    ('tree',)
    """
    if source is None:
        return ()
    names = list(dict.fromkeys(read_vocabulary(_LVIS_NAMES if source == "lvis" else source)))
    forms = [{clean_name(n), clean_name(n, keep_qualifier=False) or n} for n in category_names]
    known = Spellings(sorted(set().union(*forms)))
    kept = tuple(n for n in names if known.whole(normalise(clean_name(n))) is None)
    kept = tuple(n for n in kept if known.whole(normalise(clean_name(n, keep_qualifier=False))) is None)
    if not kept:
        raise ConfigError(
            f"background: all of {names[:3]}{'...' if len(names) > 3 else ''} are names of the vocabulary; give names "
            "of other things, or 'lvis'"
        )
    return kept


@dataclass(frozen=True)
class Candidates:
    """The K names and M background names that a ranker is shown, and the way back to the names alone."""

    known: Shortlist  # (R, N): names alone; probabilities over names and background
    shown: Shortlist  # (R, K + M), best first; ids from C on are of background names
    joint: Shortlist  # (R, K + M + N - K): those shown, then the tail of the names: what is fused
    place: Tensor  # (R, K) int64: column of `shown` in which each of the best K names stands

    def names_of(self, fused: Tensor) -> Tensor:
        """(R, N) scores of the names, from those of `joint`."""
        width = self.shown.depth
        return torch.cat([fused[:, :width].gather(1, self.place), fused[:, width:]], dim=1)

    def ranking_of(self, ranking: Ranking) -> Ranking:
        """What a ranking of `shown` says about the K names: background names are left out of it.

        The log-probabilities are of the names alone again; what the background had goes off `presence`.
        """
        num_regions, k = self.place.shape
        column = torch.full(ranking.order.shape, -1, dtype=torch.int64)  # of `known`, for each column of `shown`
        column.scatter_(1, self.place, torch.arange(k).expand(num_regions, k))
        in_order = column.gather(1, ranking.order)
        order = in_order[in_order >= 0].reshape(num_regions, k)
        log_probs, presence = ranking.log_probs, ranking.presence
        if log_probs is not None:
            own = log_probs.gather(1, self.place)
            log_share = own.logsumexp(dim=1)
            log_probs = own - log_share[:, None]
            said = torch.where(ranking.has_opinion, log_share.exp(), torch.nan)
            presence = said if presence is None else torch.where(presence.isnan(), said, presence * log_share.exp())
        preferred = ranking.preferred
        if preferred is not None:
            preferred = torch.where(preferred < 0, -1, column.gather(1, preferred.clamp_min(0)))
        return replace(ranking, order=order, log_probs=log_probs, presence=presence, preferred=preferred)


def show_background(
    found: Shortlist, num_names: int, depth: int, num_candidates: int, num_background: int
) -> Candidates:
    """Split what was found into names and background, and choose what the ranker is shown.

    Args:
        found: deep enough for `depth` names in every row.
        num_names: C; ids from it on are of background names.
        depth: N, names kept.
        num_candidates: K.
        num_background: M.
    """
    is_background = found.category_ids >= num_names

    def first(columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
        at = (~columns).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        return found.category_ids.gather(1, at), found.probs.gather(1, at)

    ids, probs = first(~is_background, min(depth, num_names))
    known = Shortlist(ids, probs)
    k = min(num_candidates, known.depth)
    other_ids, other_probs = first(is_background, num_background)
    shown_ids, shown_probs = torch.cat([ids[:, :k], other_ids], 1), torch.cat([probs[:, :k], other_probs], 1)
    order = shown_probs.argsort(dim=1, descending=True, stable=True)
    shown = Shortlist(shown_ids.gather(1, order), shown_probs.gather(1, order))
    joint = Shortlist(torch.cat([shown.category_ids, ids[:, k:]], dim=1), torch.cat([shown.probs, probs[:, k:]], dim=1))
    return Candidates(known, shown, joint, order.argsort(dim=1)[:, :k])
