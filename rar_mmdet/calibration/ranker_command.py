"""Fit a ranker's temperature, its weight in the fusion, and when not to ask, on annotated training images.

    rar-mmdet calibrate ranker configs/demo/rar_demo_likelihood.py [--out work_dirs/ranker/rar_demo_likelihood]

Every annotated box is retrieved, and the ranker asked about it. Temperature and weight maximise the likelihood of the
truth among the candidates; AP as a function of the weight is shown beside it, not fitted. Writes calibration.json,
ap_over_weight.png and best_fusion.py, a config on top of CONFIG with what was found. Answers are kept in
OUT/answers.sqlite: a run that was stopped goes on. Never give it the images you will report on.

    rar-mmdet calibrate ranker CONFIG --precision 0.95 [--hide 0.5]

also fits the score below which a region gets no name: a share of the categories is hidden, their regions are then none
of the names, and of the names given to all regions the wanted share must be right. Prints the AUROC of known against
hidden regions; writes risk_coverage.png and none_of_these.py, a config that leaves regions without a name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from rar_mmdet.calibration import none_of_these
from rar_mmdet.calibration.annotated import AnnotatedRegions, find_regions
from rar_mmdet.calibration.command import calibration_parser, config_of, find_recognizer, training_set
from rar_mmdet.calibration.crops import Scorer
from rar_mmdet.calibration.ranker import AskAboutAll, Opinions, ask_about, changes_of, fit, labels_of
from rar_mmdet.calibration.report import put_at, write_config
from rar_mmdet.components import build_component, build_recognizer
from rar_mmdet.emission import Emission, TopPairs
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.fusion import LogLikFusion
from rar_mmdet.rankers import AskingRanker, report_table
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.scoring import load_annotation_file

__all__ = ["main"]

WEIGHTS = [i / 10 for i in range(11)]


def build(
    settings: Mapping[str, Any], where: str, annotation_file: Path, out: Path
) -> tuple[RegionRecognizer, Emission]:
    """The recogniser, asking about every region of the annotation file's categories; and the config's own emission.

    Raises:
        ConfigError: it has no ranker that asks a model, or one that only writes text.
        MissingAssetError: weights are not there.
    """
    emission = build_component(settings.get("emission") or TopPairs(), f"{where}.emission", default_type="TopPairs")
    depth = max(emission.depth, int(settings.get("num_candidates", 5)))
    changed = {**settings, "vocabulary": str(annotation_file), "emission": AskAboutAll(depth)}
    changed["detector_fusion"] = None  # annotated boxes have no scores of a detector
    ranker = build_component(settings.get("ranker"), f"{where}.ranker")
    if not isinstance(ranker, AskingRanker) or ranker.ask.wants == "text":
        raise ConfigError(
            f"{where} has no ranker that gives log-probabilities; one with ask=dict(type='Likelihood'), 'Letter' or "
            "'YesNo' can be calibrated"
        )
    # What is to be found must not decide what is asked.
    limits = {"max_fallback_rate": ranker.limits.max_fallback_rate, "decisive_margin": None}
    cache = settings["ranker"].get("cache", str(out / "answers.sqlite"))
    changed["ranker"] = {**settings["ranker"], "limits": limits, "cache": cache}
    recognizer = build_recognizer(changed, where)
    missing = [*recognizer.encoder.missing_assets(), *ranker.missing_assets()]
    if missing:
        raise MissingAssetError("; ".join(map(str, missing)))
    return recognizer, emission


def curves(opinions: Opinions, score: Scorer, regions: AnnotatedRegions, temperature: float) -> dict[str, list[float]]:
    """AP over the weights, and that of rare categories where the annotations know which are rare."""
    summaries = [
        score.summary(opinions.fused(LogLikFusion(alpha=weight, temperature=temperature), regions))
        for weight in tqdm(WEIGHTS, desc="score", unit="weight", leave=False, disable=None)
    ]
    names = [name for name in ("AP", "APr") if name in summaries[0]]
    return {name: [summary[name] for summary in summaries] for name in names}


def plot(found: Mapping[str, Sequence[float]], weight: float, path: Path) -> None:
    """AP over the fusion weight, one line per subset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in found.items():
        axes.plot(WEIGHTS, [100 * value for value in values], marker="o", label=name)
    axes.axvline(weight, color="grey", linestyle="--", label=f"fitted by likelihood: {weight:.2f}")
    axes.set(xlabel="weight of the ranker (alpha of LogLikFusion)", ylabel="AP on the calibration images")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def describe(result: Mapping[str, Any]) -> str:
    """What was found, for people."""
    lines = [f"{result['used']} of {result['regions']} regions have their truth among the candidates"]
    lines.append(f"fusion: alpha={result['alpha']:.3f}, temperature={result['temperature']:.3f}")
    if result["decisive_margin"] is None:
        lines.append("ranker: decisive_margin=None, no question can be spared")
    else:
        saving = 100 * result["saving"]
        lines.append(f"ranker: decisive_margin={result['decisive_margin']:.4f} saves {saving:.1f} % of the questions")
    names = ("nll_retrieval", "nll_ranker", "nll_ranker_tempered", "nll_fused", "top1_retrieval", "top1_fused")
    lines += [f"  {name:20s} {result[name]:.4f}" for name in names]
    lines += [f"  alpha {w:.1f}  AP {100 * ap:.2f}" for w, ap in zip(WEIGHTS, result["AP_over_weight"], strict=True)]
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = calibration_parser("ranker", __doc__, "config with a ranker that gives log-probabilities")
    parser.add_argument(
        "--precision", type=_share, help="also fit the score below which a region gets no name: share of right names"
    )
    parser.add_argument(
        "--hide", type=_share, default=0.5, help="--precision: share of the categories hidden (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="--precision: which are hidden (default: %(default)s)")
    return parser.parse_args(argv)


def _share(text: str) -> float:
    """A number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1], such as 0.95; got {text!r}")
    return value


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Ask, fit, score, write; returns what calibration.json holds."""
    config = config_of(args)
    annotation_file, images = training_set(config, args.annotations, args.images)
    where, settings = find_recognizer(config, args.config)
    out = args.out or Path("work_dirs/ranker") / args.config.stem
    recognizer, emission = build(settings, where, annotation_file, out)
    annotations = load_annotation_file(annotation_file)
    regions = find_regions(annotations, images, args.num_images)
    truth = labels_of(regions, annotations["categories"])
    print(f"{len(regions)} boxes of {len(regions.files)} images in {annotation_file}; files go to {out}")
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as folder:
        opinions = ask_about(recognizer, regions, truth, Path(folder))
        result = fit(opinions)
        score = Scorer(recognizer.memory, emission, regions, annotations)
        found = curves(opinions, score, regions, result["temperature"])
        del opinions  # the files it reads from go now
    changes = changes_of(result, settings)
    if args.precision is not None:
        k = min(recognizer.num_candidates + 1, len(recognizer.category_names) - 1)
        kept = none_of_these.hide_categories(len(recognizer.category_names), args.hide, k, args.seed)
        none_of_these.with_evidence(recognizer, result["alpha"], result["temperature"])
        open_set = none_of_these.recognise_open_set(recognizer, regions, truth, kept)
        result["none_of_these"] = none_of_these.fit(open_set, args.precision)
        none_of_these.draw({"ranked": open_set}, out / "risk_coverage.png", args.precision)
        told = f"A threshold for {args.precision:.0%} right names, {args.hide:.0%} of the categories hidden, fitted on"
        write_config(
            put_at(where, none_of_these.changes_of(result["none_of_these"], changes["fusion"], settings)),
            f"{told} {annotation_file.name}; by rar-mmdet calibrate ranker --precision",
            args.config,
            out / "none_of_these.py",
        )
    assert recognizer.ranker is not None
    result |= {"weights": WEIGHTS, **{f"{name}_over_weight": values for name, values in found.items()}}
    result["ranker"] = recognizer.ranker.report()
    (out / "calibration.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(found, result["alpha"], out / "ap_over_weight.png")
    comment = f"Weight, temperature and margin fitted on {annotation_file.name}; by rar-mmdet calibrate ranker"
    write_config(put_at(where, changes), comment, args.config, out / "best_fusion.py")
    print(report_table(result["ranker"]))
    print(describe(result))
    if args.precision is not None:
        print(none_of_these.describe(result["none_of_these"]))
        print(f"Use it: {out / 'none_of_these.py'}; the curve: {out / 'risk_coverage.png'}")
    print(f"Use it: {out / 'best_fusion.py'}; the curve: {out / 'ap_over_weight.png'}")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    run(parse_args(argv))
    return 0
