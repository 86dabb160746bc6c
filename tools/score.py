"""Score a detector's result file under the LVIS, COCO or V3Det protocol; no model needed.

python tools/score.py results.bbox.json lvis_v1_val.json --protocol lvis
python tools/score.py results.bbox.json v3det_2023_v1_val.json --protocol v3det --json numbers.json
python tools/score.py ours.bbox.json lvis_v1_val.json --protocol lvis --compare baseline.bbox.json
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rar_mmdet.errors import RarError
from rar_mmdet.scoring.annotations import Detections, GroundTruth, load_annotation_file
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.comparison import Comparison, Interval, compare
from rar_mmdet.scoring.protocols import (
    PROTOCOLS,
    find_category_tree,
    read_checked_results,
    score,
    with_iou_type,
    without_unseen_images,
)
from rar_mmdet.scoring.settings import Protocol
from rar_mmdet.scoring.summaries import per_category_ap


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="COCO-style result file, such as results.bbox.json")
    parser.add_argument("annotations", help="annotation file")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), required=True)
    parser.add_argument("--metric", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--compare", metavar="OTHER", help="another result file: differences and their intervals")
    parser.add_argument("--resamples", type=int, default=200, help="draws of the bootstrap (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers at full precision")
    parser.add_argument("--classes", metavar="FILE", help="write AP (and differences) of every class as CSV")
    parser.add_argument(
        "--category-tree", metavar="FILE", help="V3Det's category tree; by default looked for beside the annotations"
    )
    parser.add_argument(
        "--seen-only", action="store_true", help="score only images that have a detection in the (first) result file"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        run(args)
    except RarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    protocol = with_iou_type(args.protocol, args.metric)
    detections = read(args.results, protocol)
    dataset = load_annotation_file(args.annotations, keep_segmentations=args.metric == "segm")
    if args.seen_only:
        dataset = without_unseen_images(dataset, detections)
    truth = GroundTruth.from_dataset(dataset, federated=protocol.federated, keep_segmentations=args.metric == "segm")
    del dataset
    tell_coverage(truth, detections)
    scored = score(truth, detections, protocol, tree_for(args, truth))
    output: dict[str, Any] = dict(scored.numbers)
    print_numbers(args.results, scored.numbers)
    for reason, count in scored.result.matches.dropped.items():
        print(f"left out, as the reference API does: {count} detections ({reason})")
    comparison = None
    if args.compare is not None:
        other = score(truth, read(args.compare, protocol), protocol)
        comparison = compare(
            scored.result.matches,
            other.result.matches,
            truth.frequencies,
            resamples=args.resamples,
            seed=args.seed,
            track=lambda draws: tqdm(draws, desc="bootstrap", file=sys.stderr, disable=None),
        )
        print_comparison(args, comparison, truth)
        output["compare"] = comparison_json(comparison, truth, args)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(output, indent=1) + "\n", encoding="utf-8")
    if args.classes is not None:
        write_classes(args.classes, truth, per_category_ap(scored.result).tolist(), comparison)


def read(path: str, protocol: Protocol) -> Detections:
    size = os.path.getsize(path) if os.path.exists(path) else None
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=f"reading {Path(path).name}", file=sys.stderr, disable=None
    ) as bar:
        return read_checked_results(path, protocol, progress=bar.update)


def tree_for(args: argparse.Namespace, truth: GroundTruth) -> CategoryTree | None:
    if args.protocol != "v3det":
        return None
    path = args.category_tree or find_category_tree(args.annotations)
    if path is None:
        print(
            "note: no category tree beside the annotations, so only the plain protocol is scored; give V3Det's "
            "v3det_2023_v1_category_tree.json with --category-tree for the second one",
            file=sys.stderr,
        )
        return None
    return CategoryTree.load(path, dict(zip(truth.category_names, truth.category_ids.tolist(), strict=True)))


def tell_coverage(truth: GroundTruth, detections: Detections) -> None:
    seen = len(set(detections.image_ids.tolist()))
    if seen < 0.9 * truth.num_images:
        print(
            f"note: detections are of {seen} images, and the numbers are over all {truth.num_images} of the annotation "
            "file: every object of the others counts as missed. If a subset was tested, add --seen-only.",
            file=sys.stderr,
        )


def print_numbers(name: str, numbers: dict[str, float]) -> None:
    print(f"\n{name}")
    for key, value in numbers.items():
        print(f"  {key:<20} {value:8.4f}")


def print_comparison(args: argparse.Namespace, comparison: Comparison, truth: GroundTruth) -> None:
    print(f"\n{args.results} minus {args.compare}: 95 % intervals of {args.resamples} paired draws of the images")
    print(f"  {'':<24} {'first':>8} {'other':>8} {'diff':>8}   interval")
    for key, interval in comparison.numbers.items():
        print_interval(f"{args.metric}_{key}", interval)
    order = sorted(
        (i for i, c in enumerate(comparison.per_category) if not math.isnan(c.difference)),
        key=lambda i: -abs(comparison.per_category[i].difference),
    )
    print(f"\nclasses that differ most (all {len(order)}: --classes FILE)")
    for i in order[:20]:
        print_interval(truth.category_names[i][:24], comparison.per_category[i])


def print_interval(name: str, interval: Interval) -> None:
    mark = "*" if interval.is_clear else " "
    print(
        f"  {name:<24} {interval.first:8.4f} {interval.other:8.4f} {interval.difference:+8.4f} {mark} "
        f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    )


def interval_json(interval: Interval) -> dict[str, float | None]:
    values = {
        "first": interval.first,
        "other": interval.other,
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
    }
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def comparison_json(comparison: Comparison, truth: GroundTruth, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "other": args.compare,
        "resamples": args.resamples,
        "seed": args.seed,
        "numbers": {f"{args.metric}_{key}": interval_json(i) for key, i in comparison.numbers.items()},
        "classes": [
            {"id": category, "name": name, **interval_json(interval)}
            for category, name, interval in zip(
                truth.category_ids.tolist(), truth.category_names, comparison.per_category, strict=True
            )
            if not math.isnan(interval.difference)
        ],
    }


def write_classes(path: str, truth: GroundTruth, values: list[float], comparison: Comparison | None) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        extra = ["other", "difference", "low", "high"] if comparison is not None else []
        writer.writerow(["id", "name", "frequency", "AP", *extra])
        for k, value in enumerate(values):
            frequency = truth.frequencies[k] if truth.frequencies is not None else ""
            row = [truth.category_ids[k], truth.category_names[k], frequency, value]
            if comparison is not None:
                c = comparison.per_category[k]
                row += [c.other, c.difference, c.low, c.high]
            writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
