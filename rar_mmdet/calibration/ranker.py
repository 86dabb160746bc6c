"""Fit a ranker's temperature, its weight in the fusion, and when not to ask, on annotated training images.

    rar-mmdet calibrate ranker configs/demo/rar_demo_likelihood.py \
        --annotations data/demo/annotations/lvis_demo_calib.json --images data/demo --out work_dirs/calibration

Writes calibration.json, ap_over_weight.png and best_fusion.py, a config on top of CONFIG with the result. Temperature
and weight maximise the likelihood of the truth among the candidates; AP as a function of the weight is shown beside it,
not fitted. Answers are kept in OUT/answers.sqlite: a run that was stopped goes on. Never give it the images you will
report on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.calibration.annotated import AnnotatedRegions, find_regions
from rar_mmdet.calibration.command import find_recognizer
from rar_mmdet.calibration.crops import Scorer
from rar_mmdet.calibration.report import write_snippet
from rar_mmdet.components import asks_a_model, build_recognizer
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import MissingAssetError, RankerError, RarError
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.fusion import LogLikFusion
from rar_mmdet.rankers import AskingRanker
from rar_mmdet.rankers.calibration import (
    decisive_margin,
    fit_temperature,
    fit_weight,
    fused_log_probs,
    negative_log_likelihood,
)
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.scoring import load_annotation_file
from rar_mmdet.structures import Ranking, Shortlist

__all__ = ["Opinions", "collect", "fit", "main"]

WEIGHTS = [i / 10 for i in range(11)]
REGIONS_AT_A_TIME = 64  # cropped, retrieved and ranked together: bounds memory, whatever the number of boxes


@dataclass(frozen=True)
class Opinions:
    """What retrieval and ranker say about R annotated regions."""

    truth: Tensor  # (R,) int64 row of the vocabulary
    shortlist: Shortlist  # (R, N)
    ranking: Ranking  # (R, K)

    def target(self, k: int) -> Tensor:
        """(R,) column of the truth among the K best, -1 where it is not."""
        hit = self.shortlist.category_ids[:, :k] == self.truth[:, None]
        return torch.where(hit.any(1), hit.float().argmax(1), -1)


def collect(recognizer: RegionRecognizer, regions: AnnotatedRegions, category_ids: Sequence[int]) -> Opinions:
    """Crop, encode, retrieve and rank every region; crops are held for a few photos at a time.

    Args:
        recognizer: with a ranker.
        regions: the annotated boxes.
        category_ids: C ids of the annotation file, in label order.
    """
    label_of = {category: label for label, category in enumerate(category_ids)}
    device = recognizer.load()
    cropper, ranker, k = recognizer.ranker_cropper, recognizer.ranker, recognizer.num_candidates
    assert cropper is not None, "only recognisers with a ranker are calibrated"
    assert ranker is not None, "only recognisers with a ranker are calibrated"
    shortlists: list[Shortlist] = []
    rankings: list[Ranking] = []
    with tqdm(total=len(regions), desc="rank", unit="region", disable=None) as bar:
        for images, _ in regions.parts(REGIONS_AT_A_TIME):
            photos = [(regions.photo(i), torch.from_numpy(regions.boxes_xyxy[regions.rows(i)]).float()) for i in images]
            crops = torch.cat([recognizer.cropper.crop(photo, boxes) for photo, boxes in photos])
            vectors = recognizer.encoder.encode_images(crops.to(device))
            found = recognizer.memory.search(vectors, recognizer.shortlist_depth)
            shortlist = Shortlist(found.category_ids.cpu(), found.probs.cpu())
            shown = torch.cat([cropper.crop(photo, boxes).cpu() for photo, boxes in photos])
            shortlists.append(shortlist)
            rankings.append(ranker.rank(shown, shortlist.head(k), recognizer.prompt_names))
            bar.update(len(shown))
    truth = torch.tensor([label_of[record["category_id"]] for record in regions.annotations])
    ids, probs = (torch.cat([getattr(s, name) for s in shortlists]) for name in ("category_ids", "probs"))
    return Opinions(truth, Shortlist(ids, probs), _joined(rankings))


def _joined(rankings: Sequence[Ranking]) -> Ranking:
    """Rankings one below the other; rows without log-probabilities get none of the others'."""
    if all(ranking.log_probs is None for ranking in rankings):
        log_probs = None
    else:
        empty = [r.order.new_zeros(r.order.shape).float() if r.log_probs is None else r.log_probs for r in rankings]
        log_probs = torch.cat(empty)
    return Ranking(torch.cat([r.order for r in rankings]), log_probs, torch.cat([r.status for r in rankings]))


def fit(opinions: Opinions, k: int) -> dict[str, Any]:
    """Temperature, weight and margin, with the likelihoods before and after."""
    ranking, shortlist, target = opinions.ranking, opinions.shortlist, opinions.target(k)
    usable = (target >= 0) & ranking.has_opinion
    if k < 2 or not usable.any() or ranking.log_probs is None:
        raise RarError(
            f"{int((target >= 0).sum())} of {len(target)} regions have their truth among the K={k} candidates and "
            f"{int(ranking.has_opinion.sum())} were scored by the ranker; a fit needs some with both, and K >= 2"
        )
    log_p, log_q = ranking.log_probs[usable], shortlist.probs[usable, :k].log()
    wanted = target[usable]
    temperature = fit_temperature(log_p, wanted)
    weight = fit_weight(log_q, log_p / temperature, wanted)
    both = fused_log_probs(shortlist.probs[:, :k].log(), ranking.log_probs.double() / temperature, weight)
    margin, saving = decisive_margin(shortlist.probs[:, :k], both.argmax(1), target)
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
        "top1_fused": (both.argmax(1) == target).double().mean().item(),
        "recall_at_k": (target >= 0).double().mean().item(),
    }


def plot(curves: dict[str, list[float]], weight: float, path: Path) -> None:
    """AP over the fusion weight, one line per subset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in curves.items():
        axes.plot(WEIGHTS, [100 * v for v in values], marker="o", label=name)
    axes.axvline(weight, color="grey", linestyle="--", label=f"fitted by likelihood: {weight:.2f}")
    axes.set(xlabel="weight of the ranker (alpha of LogLikFusion)", ylabel="AP on the calibration images")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        "rar-mmdet calibrate ranker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="config with a ranker that gives log-probabilities")
    parser.add_argument("--annotations", type=Path, required=True, help="LVIS or COCO annotation file, training images")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override config keys: key=value")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Collect, fit, score, write; returns what calibration.json holds."""
    from mmengine.config import Config

    if not args.config.is_file():
        raise MissingAssetError(f"config {args.config} does not exist")
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    where, settings = find_recognizer(config, args.config)
    recognizer = _recognizer(settings, where, args)
    annotations = load_annotation_file(args.annotations)
    regions = find_regions(annotations, args.images, args.num_images)
    opinions = collect(recognizer, regions, label_order(annotations["categories"]))
    result = fit(opinions, recognizer.num_candidates)
    score = Scorer(recognizer.memory, recognizer.emission, regions, annotations)
    curves: dict[str, list[float]] = {"AP": []}
    for weight in WEIGHTS:
        fused = LogLikFusion(alpha=weight, temperature=result["temperature"])(opinions.shortlist, opinions.ranking)
        curves["AP"].append(score.of(fused, opinions.shortlist.category_ids)["AP"] / 100)
    result |= {"weights": WEIGHTS, "AP_over_weight": curves["AP"]}
    assert recognizer.ranker is not None, "checked when it was built"
    result["ranker"] = recognizer.ranker.report()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "calibration.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(curves, result["alpha"], args.out / "ap_over_weight.png")
    fusion = {
        "type": "LogLikFusion",
        "alpha": round(result["alpha"], 3),
        "temperature": round(result["temperature"], 3),
    }
    comment = f"Weight and temperature fitted on {args.annotations.name} by `rar-mmdet calibrate ranker`"
    write_snippet(fusion, f"{where}.fusion", comment, args.config, args.out / "best_fusion.py")
    return result


def _recognizer(settings: Mapping[str, Any], where: str, args: argparse.Namespace) -> RegionRecognizer:
    """The recogniser with the vocabulary of the annotation file, whose ranker is asked about every region."""
    settings = {**settings, "vocabulary": str(args.annotations)}
    if asks_a_model(settings.get("ranker")):
        # What is to be found must not decide what is asked.
        limits = {**(settings["ranker"].get("limits") or {}), "decisive_margin": None}
        args.out.mkdir(parents=True, exist_ok=True)
        settings["ranker"] = {"cache": str(args.out / "answers.sqlite"), **settings["ranker"], "limits": limits}
    recognizer = build_recognizer(settings, where, default_emission=TopPairs())
    ranker = recognizer.ranker
    if not isinstance(ranker, AskingRanker) or ranker.ask.wants == "text":
        raise RankerError(
            f"{args.config} has no ranker that gives log-probabilities; give it one with ask='likelihood', 'letter' or "
            "'yesno'"
        )
    missing = [*recognizer.encoder.missing_assets(), *ranker.missing_assets()]
    if missing:
        raise MissingAssetError("; ".join(map(str, missing)))
    return recognizer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    try:
        result = run(args)
    except RarError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{result['used']} of {result['regions']} regions have their truth among the candidates")
    print(f"fusion=dict(type='LogLikFusion', alpha={result['alpha']:.3f}, temperature={result['temperature']:.3f})")
    if result["decisive_margin"] is None:
        print("ranker: decisive_margin=None, no question can be spared")
    else:
        saving = 100 * result["saving"]
        print(f"ranker: decisive_margin={result['decisive_margin']:.4f} saves {saving:.1f} % of the questions")
    for name in ("nll_retrieval", "nll_ranker", "nll_ranker_tempered", "nll_fused", "top1_retrieval", "top1_fused"):
        print(f"  {name:20s} {result[name]:.4f}")
    for weight, ap in zip(WEIGHTS, result["AP_over_weight"], strict=True):
        print(f"  alpha {weight:.1f}  AP {100 * ap:.2f}")
    print(f"written to {args.out}: calibration.json, ap_over_weight.png, best_fusion.py")
    return 0
