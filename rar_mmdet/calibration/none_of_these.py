"""When a region is to get no name: a threshold fitted on regions whose categories are hidden from the vocabulary.

Annotated photos say of every region what it is, never that it is something without a name. So a share of the
categories is hidden: their regions are now none of the names, as most boxes are where the vocabulary is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.calibration.annotated import AnnotatedRegions
from rar_mmdet.calibration.ranker import recognised
from rar_mmdet.errors import ConfigError, RarError
from rar_mmdet.fusion import LogLikFusion, NoneOfThese
from rar_mmdet.rankers.calibration import auroc, precision_over_coverage, threshold_for
from rar_mmdet.recognizer import RegionRecognizer

__all__ = ["OpenSet", "changes_of", "describe", "draw", "fit", "hide_categories", "recognise_open_set"]

_DIGITS = 4  # of the threshold, rounded up: what is named is more surely right


@dataclass(frozen=True)
class OpenSet:
    """R regions, some of which are none of the names."""

    scores: Tensor  # (R,) float32: of each region's best name
    retrieval: Tensor  # (R,) float32: retrieval's probability of its own best name
    retrieval_right: Tensor  # (R,) bool: that name is the truth
    presence: Tensor  # (R,) float32: what the ranker says of any candidate; NaN: nothing
    right: Tensor  # (R,) bool: the best name is the truth
    known: Tensor  # (R,) bool: the truth is among the names


def hide_categories(count: int, share: float, at_least: int, seed: int = 0) -> list[int]:
    """The labels that stay, in their order, when a share of `count` categories is hidden; drawn by `seed`.

    Raises:
        ConfigError: the share is none, or fewer than `at_least` categories would stay.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share of hidden categories must be in (0, 1), got {share}")
    kept = round(count * (1 - share))
    if kept < at_least or kept == count:
        raise ConfigError(
            f"hiding {share:.0%} of {count} categories leaves {kept}; {at_least} to {count - 1} are needed: hide "
            "another share, or give annotations with more categories"
        )
    return sorted(np.random.default_rng(seed).permutation(count)[:kept].tolist())


def recognise_open_set(
    recognizer: RegionRecognizer, regions: AnnotatedRegions, truth: Tensor, kept: list[int]
) -> OpenSet:
    """Recognise every region with the names of the labels `kept` alone.

    Args:
        recognizer: of all names, asking about every region.
        regions: the annotated boxes.
        truth: (R,) labels among all names.
        kept: the labels whose names stay.
    """
    other = recognizer.with_vocabulary([recognizer.category_names[label] for label in kept])
    label = torch.full((len(recognizer.category_names),), -1, dtype=torch.int64)
    label[torch.tensor(kept)] = torch.arange(len(kept))
    mine = label[truth]
    columns: dict[str, list[Tensor]] = {}
    for own, found in recognised(other, regions, "ask, names hidden"):
        presence = found.ranking.presence
        nothing = torch.full((len(found),), torch.nan)
        told = {
            "scores": found.best_scores,
            "retrieval": found.shortlist.probs[:, 0],
            "retrieval_right": found.shortlist.category_ids[:, 0] == mine[own],
            "presence": nothing if presence is None else presence,
            "right": found.best_ids == mine[own],
        }
        for name, values in told.items():
            columns.setdefault(name, []).append(values)
    return OpenSet(**{name: torch.cat(parts) for name, parts in columns.items()}, known=mine >= 0)


def fit(found: OpenSet, precision: float) -> dict[str, Any]:
    """The lowest threshold that gives names of the wanted precision, and how well known and unknown regions part.

    Raises:
        RarError: no threshold does, or all regions are known, or none.
    """
    if found.known.all() or not found.known.any():
        raise RarError(
            f"{int(found.known.sum())} of {len(found.known)} regions are of categories that are not hidden; some of "
            "both are needed: hide another share (--hide) or draw again (--seed)"
        )
    threshold, _, _ = threshold_for(precision, found.scores, found.right)
    if math.isinf(threshold):
        raise RarError(
            f"no threshold gives names of which {precision:.0%} are right: not even of the "
            f"surest of {len(found.scores)} regions. Ask for less (--precision), or use a better ranker or way to ask"
        )
    if threshold > 0:
        unit = 10.0 ** (math.floor(math.log10(threshold)) + 1 - _DIGITS)
        threshold = min(float(f"{math.ceil(threshold / unit) * unit:.{_DIGITS}g}"), 1.0)
    return {"precision_wanted": precision, "min_score": threshold, **measure(found, threshold)}


def measure(found: OpenSet, threshold: float) -> dict[str, Any]:
    """What a threshold does, in fractions of all regions, and AUROCs of known against unknown regions."""
    named = found.scores >= threshold
    presence = found.presence.nan_to_num(1.0)
    return {
        "regions": len(named),
        "known": found.known.double().mean().item(),
        "coverage": named.double().mean().item(),
        "precision": found.right[named].double().mean().item() if named.any() else math.nan,
        "named_of_known": named[found.known].double().mean().item(),
        "named_of_unknown": named[~found.known].double().mean().item(),
        "right_without_threshold": found.right.double().mean().item(),
        "auroc": auroc(found.scores, found.known),
        "auroc_presence": auroc(presence, found.known),
        "auroc_retrieval": auroc(found.retrieval, found.known),
    }


def describe(result: Mapping[str, Any]) -> str:
    """What was found, for people."""
    share = {name: f"{100 * value:.1f} %" for name, value in result.items() if isinstance(value, float)}
    hidden = f"{100 * (1 - result['known']):.1f} %"
    return (
        f"none of these: {hidden} of {result['regions']} regions are of hidden categories\n"
        f"  AUROC, known against hidden: {result['auroc']:.3f} (the ranker's evidence alone "
        f"{result['auroc_presence']:.3f}, retrieval {result['auroc_retrieval']:.3f})\n"
        f"  min_score={result['min_score']:.{_DIGITS}g}: {share['coverage']} of the regions get a name, "
        f"{share['precision']} of these are right\n"
        f"  of known regions {share['named_of_known']} are named, of hidden ones {share['named_of_unknown']}"
    )


def draw(curves: Mapping[str, OpenSet], path: Path, wanted: float | None = None) -> None:
    """Share of wrong names over the share of regions that get one, a line for each way to score."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, found in curves.items():
        _, coverage, precision = precision_over_coverage(found.scores, found.right)
        axes.plot(100 * coverage, 100 * (1 - precision), label=name)
    if wanted is not None:
        axes.axhline(100 * (1 - wanted), color="grey", linestyle="--", label=f"{100 * wanted:.0f} % right")
    share = max(100 * found.known.double().mean().item() for found in curves.values())
    axes.axvline(share, color="grey", linestyle=":", label="share of regions whose class has a name")
    axes.set(xlabel="regions with a name (%)", ylabel="wrong names (%)", xlim=(0, 100), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def changes_of(result: Mapping[str, Any], fusion: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the threshold changes in the settings of a recogniser.

    Args:
        result: of `fit`.
        fusion: the settings of the fusion whose scores are weighed.
        settings: those of the recogniser.
    """
    inner = {key: value for key, value in fusion.items() if key != "_delete_"}
    changes: dict[str, Any] = {
        "fusion": {"type": "NoneOfThese", "fusion": inner},
        "emission": {"type": "BestPerRegion", "min_score": result["min_score"]},
    }
    for name in changes:
        if settings.get(name):
            changes[name]["_delete_"] = True
    # A region that is not asked about has no evidence against its name.
    return {**changes, "ranker": {"limits": {"decisive_margin": None}}}


def with_evidence(recognizer: RegionRecognizer, alpha: float, temperature: float) -> RegionRecognizer:
    """The recogniser with that fusion, times the ranker's evidence that a region is any of the names."""
    recognizer.fusion = NoneOfThese(LogLikFusion(alpha=alpha, temperature=temperature))
    return recognizer
