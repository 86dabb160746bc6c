"""Fit how a detector's own scores join those of retrieval, on annotated training images.

    rar-mmdet calibrate detector configs/detectors/clip_rtdetr_demo.py [--out work_dirs/detector/NAME]

The config's detector finds boxes and retrieval names them; the ranker, if any, is not asked. Where the detector's names
are names of the vocabulary (COCO's "car" is LVIS's "car_(automobile)"), its class scores are pooled with retrieval's:
weights that maximise the likelihood of the truth over the boxes that cover an annotated object (IoU 0.5). The weight of
its box scores is the one with the best AP on these images. Prints AP before and after; writes calibration.json,
ap_over_box_weight.png and best_detector_fusion.py, a config on top of CONFIG with what was found. Never give it the
images you will report on, nor those that the detector was trained on: it is surer of these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from rar_mmdet.calibration.annotated import find_regions
from rar_mmdet.calibration.command import calibration_parser, config_of, find_recognizer, retrieval_alone, training_set
from rar_mmdet.calibration.crops import Scorer
from rar_mmdet.calibration.detector import FoundRegions, find_boxes, fit_pool, name_boxes, with_box_weight
from rar_mmdet.calibration.ranker import labels_of
from rar_mmdet.calibration.report import put_at, write_config
from rar_mmdet.components import build_component, build_recognizer
from rar_mmdet.detectors import TransformersDetector, rows_of_names
from rar_mmdet.detectors.selection import FOUND_SELECTION, RegionSelection
from rar_mmdet.emission import FOUND_BOXES, Emission
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.files.names import short, shown
from rar_mmdet.fusion import LogPool
from rar_mmdet.scoring import load_annotation_file

__all__ = ["main"]

WEIGHTS = [i / 10 for i in range(10)]  # of the box scores; at 1 the names of a box tie


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = calibration_parser("detector", __doc__, "config of a RARDetector around a TransformersDetector")
    return parser.parse_args(argv)


def build_detector(model: Mapping[str, Any]) -> tuple[TransformersDetector, RegionSelection]:
    """The detector of a config, and which of its boxes are recognised.

    Raises:
        ConfigError: it is none of transformers.
        MissingAssetError: its files are not there.
    """
    settings = model.get("detector")
    if not isinstance(settings, Mapping) or not str(settings.get("type")).endswith("TransformersDetector"):
        raise ConfigError(
            f"model.detector is {short(settings)}; calibrate detector runs without MMDetection and needs "
            "dict(type='rar_mmdet.TransformersDetector', ...) there"
        )
    detector = build_component(dict(settings), "model.detector")
    missing = detector.missing_assets()
    if missing:
        raise MissingAssetError("; ".join(missing))
    return detector, RegionSelection.from_config(model.get("selection"), "model.selection", **FOUND_SELECTION)


def measure(score: Scorer, found: FoundRegions, pool: LogPool | None, emission: Emission) -> dict[str, Any]:
    """AP by retrieval alone and, with a pool, pooled: over the weights of the box scores, and at the config's own."""
    curves = {}
    ways: dict[str, LogPool | None] = {"retrieval": None} | ({} if pool is None else {"pooled": pool})
    for name, fusion in ways.items():
        bar = tqdm(WEIGHTS, desc=f"score, {name}", unit="weight", leave=False, disable=None)
        curves[name] = [
            score.summary_of_found(found.pooled(fusion), with_box_weight(emission, weight))["AP"] for weight in bar
        ]
    last = list(curves.values())[-1]
    best = max(range(len(WEIGHTS)), key=lambda i: last[i])
    return {
        "weights": WEIGHTS,
        "AP_over_box_weight": curves,
        "box_score_weight": WEIGHTS[best],
        "AP_before": score.summary_of_found(found.pooled(None), emission)["AP"],
        "AP_pooled": score.summary_of_found(found.pooled(pool), emission)["AP"],
        "AP_after": last[best],
    }


def plot(result: Mapping[str, Any], path: Path) -> None:
    """AP over the weight of the box scores, with and without the detector's class scores."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in result["AP_over_box_weight"].items():
        axes.plot(WEIGHTS, [100 * value for value in values], marker="o", label=name)
    axes.axvline(result["box_score_weight"], color="grey", linestyle="--", label="best")
    axes.set(xlabel="box_score_weight of the emission", ylabel="AP on the calibration images")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def describe(result: Mapping[str, Any]) -> str:
    """What was found, for people."""
    lines = [f"{result['boxes']} boxes that the detector found"]
    if "weight" in result:
        names = ("nll_retrieval", "nll_pooled", "top1_retrieval", "top1_pooled")
        lines += [
            f"{result['covering']} cover an object; of the {result['used']} used the detector knows the name of "
            f"{100 * result['known_truth']:.0f} %",
            f"detector_fusion: LogPool(weight={result['weight']}, unknown={result['unknown']})",
            *(f"  {name:20s} {result[name]:.4f}" for name in names),
        ]
    lines.append(f"emission: box_score_weight={result['box_score_weight']}")
    told = f"  AP {100 * result['AP_before']:.2f} as the config is, "
    if "weight" in result:
        told += f"{100 * result['AP_pooled']:.2f} with the class scores, "
    return "\n".join([*lines, f"{told}{100 * result['AP_after']:.2f} with that weight of the box scores too"])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Detect, retrieve, fit, score, write; returns what calibration.json holds."""
    config = config_of(args)
    annotation_file, images = training_set(config, args.annotations, args.images)
    where, settings = find_recognizer(config, args.config)
    detector, selection = build_detector(config.model)
    recognizer = build_recognizer(retrieval_alone(settings, annotation_file), where, FOUND_BOXES)
    missing = recognizer.encoder.missing_assets()
    if missing:
        raise MissingAssetError("; ".join(map(str, missing)))
    annotations = load_annotation_file(annotation_file)
    regions = find_regions(annotations, images, args.num_images)
    truth = labels_of(regions, annotations["categories"])
    out = args.out or Path("work_dirs/detector") / args.config.stem
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(regions)} objects of {len(regions.files)} images in {annotation_file}; files go to {out}")
    floor = float((settings.get("detector_fusion") or {}).get("floor", LogPool.floor))
    with TemporaryDirectory(dir=out) as folder:
        boxes = find_boxes(detector, selection, regions)
        found = name_boxes(recognizer, boxes, regions, truth, Path(folder))
        pool: LogPool | None = None
        result: dict[str, Any] = {"boxes": len(found)}
        if rows_of_names(detector.names, recognizer.category_names):
            pool, result = fit_pool(found, floor)
        else:
            print(
                f"none of the detector's {len(detector.names)} names ({shown(detector.names)}) is one of the "
                f"vocabulary's {len(recognizer.category_names)}: its box scores alone are fitted"
            )
        score = Scorer(recognizer.memory, recognizer.emission, regions, annotations)
        result |= measure(score, found, pool, recognizer.emission)
        del found  # the files it reads from go now
    (out / "calibration.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(result, out / "ap_over_box_weight.png")
    write_config(
        changes_of(pool, result["box_score_weight"], where, settings),
        f"How the detector's scores join, fitted on {annotation_file.name}; by rar-mmdet calibrate detector",
        args.config,
        out / "best_detector_fusion.py",
    )
    print(describe(result))
    print(f"Use it: {out / 'best_detector_fusion.py'}; the curve: {out / 'ap_over_box_weight.png'}")
    return result


def changes_of(pool: LogPool | None, box_weight: float, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a fit changes in a config."""
    fusion: dict[str, Any] | None = None if pool is None else {"type": "LogPool", **asdict(pool)}
    old = settings.get("detector_fusion") or {}
    if fusion is not None and old and old.get("type") != "LogPool":
        fusion["_delete_"] = True
    own = {} if settings.get("emission") else asdict(FOUND_BOXES)
    return put_at(where, {"detector_fusion": fusion, "emission": {**own, "box_score_weight": box_weight}})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    run(parse_args(argv))
    return 0
