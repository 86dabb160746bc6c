"""Find crop scale, blur and framing of a retriever on training images (paper section C.3, Table 11, Figure 11).

    rar-mmdet calibrate regions configs/demo/clip_demo.py [--out work_dirs/regions/clip_demo]

Retrieval only: every annotated box is cropped at every scale with every blur, named, and scored by AP (LVIS's where the
annotation file has frequencies, else COCO's) overall and by object size. Prints Table 11's layout; writes table.json,
crop_scale.png and .svg (Figure 11), and best_policy.py, a config on top of CONFIG with the best policy: another sigma
and other factors, with CONFIG's feather and area bounds. Embeddings are kept in OUT/embeddings: a run that was stopped
goes on, and a scale by area costs no encoding, as it picks for every box one of the fixed scales. Never give it the
images you will report on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.calibration.annotated import find_regions
from rar_mmdet.calibration.crops import SCALES, Embedder, Scorer, best_policy, check_policies, sweep
from rar_mmdet.calibration.report import draw, table_text, write_snippet
from rar_mmdet.components import build_recognizer, find_recognizers
from rar_mmdet.emission import TopPairs
from rar_mmdet.encoders import MixedEncoder, RegionEncoder
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.regions import AreaScale
from rar_mmdet.regions.scale import COCO_AREA_BOUNDS
from rar_mmdet.regions.windows import WINDOWS
from rar_mmdet.scoring import load_annotation_file

__all__ = ["main"]


def find_recognizer(config: Any, name: Path) -> tuple[str, dict[str, Any]]:
    """Where the recognizer's settings are, such as `model.roi_head.recognizer`, and the settings.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = list(find_recognizers(config.get("model", {})))
    if len(found) != 1:
        raise ConfigError(f"{name} has {len(found)} recognizers in its model; a config with one can be calibrated")
    where, settings = found[0]
    return where, dict(settings)


def training_set(config: Any, annotations: Path | None, images: Path | None) -> tuple[Path, Path]:
    """Annotation file and image folder: as given, else the config's own training set.

    Raises:
        MissingAssetError: there is no such file.
        ConfigError: the config has no data set of one annotation file.
    """
    own = config.get("train_dataloader")
    dataset = (own or config.get("test_dataloader") or {}).get("dataset", {})
    while "ann_file" not in dataset:
        if "dataset" not in dataset:
            raise ConfigError("the config has no data set with one ann_file; give --annotations and --images")
        dataset = dataset["dataset"]
    root = Path(dataset.get("data_root") or "")
    places = [annotations or root / dataset["ann_file"]]
    if annotations is None and own is None:
        tested = places[0]
        places = [
            tested.with_name(tested.name.replace(old, new))
            for new in ("calib", "train")
            for old in ("test", "val")
            if old in tested.name
        ]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        looked = f" at {' or '.join(map(str, places))}" if places else ""
        raise MissingAssetError(f"no training annotations found{looked}; name them: --annotations FILE")
    return found, images or root / (dataset.get("data_prefix") or {}).get("img", "")


def calibration_parser(what: str, description: str | None, config_help: str) -> argparse.ArgumentParser:
    """The parser of `rar-mmdet calibrate WHAT`, with the arguments that all of them have."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        f"rar-mmdet calibrate {what}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help=config_help)
    parser.add_argument(
        "--annotations",
        type=Path,
        help="annotation file of training images; default: the config's "
        "train_dataloader, else the calib or train file beside the test annotations",
    )
    parser.add_argument("--images", type=Path, help="folder of the images; default: the config's")
    parser.add_argument("--out", type=Path, help=f"default: work_dirs/{what}/<name of the config>")
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override config keys: key=value")
    return parser


def config_of(args: argparse.Namespace) -> Any:
    """The config of a command line of `calibration_parser`.

    Raises:
        MissingAssetError: there is no such file.
    """
    from mmengine.config import Config

    if not args.config.is_file():
        raise MissingAssetError(f"config {args.config} does not exist")
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    return config


def retrieval_alone(settings: Mapping[str, Any], annotation_file: Path) -> dict[str, Any]:
    """A recogniser's settings without what acts after retrieval, for the names of the annotation file."""
    parts = ("ranker", "ranker_cropper", "background", "detector_fusion")
    return {**settings, "vocabulary": str(annotation_file), **dict.fromkeys(parts)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = calibration_parser("regions", __doc__, "config with a recognizer; its ranker, if any, is not asked")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES), help="window side / longer box side")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.0, 10.0], help="blur, output pixels; 0 is none")
    parser.add_argument(
        "--windows", nargs="+", choices=WINDOWS, default=list(WINDOWS), help="framings beside CONFIG's (default: all)"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Sweep, print, draw and write; returns the table's rows."""
    from mmengine.config import Config

    config = config_of(args)
    annotation_file, images = training_set(config, args.annotations, args.images)
    where, settings = find_recognizer(config, args.config)
    recognizer = build_recognizer(retrieval_alone(settings, annotation_file), where, default_emission=TopPairs())
    if isinstance(recognizer.encoder, RegionEncoder | MixedEncoder):
        raise ConfigError(
            f"{where}.encoder is {type(recognizer.encoder).__name__}, which encodes boxes of whole photos: crops "
            "cannot be calibrated with it. Give a config with an encoder of crops, such as the one that is mixed in"
        )
    check_policies(recognizer.cropper, f"{where}.cropper")
    missing = recognizer.encoder.missing_assets()
    if missing:
        raise MissingAssetError("; ".join(map(str, missing)))
    recognizer.encoder.load("cuda" if torch.cuda.is_available() else "cpu")
    annotations = load_annotation_file(annotation_file)
    regions = find_regions(annotations, images, args.num_images)
    out = args.out or Path("work_dirs/regions") / args.config.stem
    print(f"{len(regions)} boxes of {len(regions.files)} images in {annotation_file}; files go to {out}")
    score = Scorer(recognizer.memory, recognizer.emission, regions, annotations)
    cropper = recognizer.cropper
    bounds = cropper.scale.bounds if isinstance(cropper.scale, AreaScale) else COCO_AREA_BOUNDS
    rows: list[dict[str, Any]] = []
    sigmas = sorted(args.sigmas)
    for window in dict.fromkeys([cropper.window, *args.windows]):
        embed = Embedder(replace(cropper, window=window), recognizer.encoder, regions, out / "embeddings")
        own = sweep(embed, score, regions.boxes_xyxy, sorted(args.scales), sigmas, bounds)
        rows += [{"window": window, **row} for row in own]
        sigmas = [max(rows, key=lambda row: row["AP"])["sigma"]]
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, out / "crop_scale")
    ap, policy = best_policy(rows, cropper.background.feather, bounds)
    comment = f"The crop policy with the best AP ({ap:.2f}) on {annotation_file.name}, by `rar-mmdet calibrate regions`"
    write_snippet({**settings["cropper"], **policy}, f"{where}.cropper", comment, args.config, out / "best_policy.py")
    print(table_text(rows))
    print(f"\nBest AP {ap:.2f}:\n{Config(policy).pretty_text}", end="")
    print(f"Use it: {out / 'best_policy.py'}")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    run(parse_args(argv))
    return 0
