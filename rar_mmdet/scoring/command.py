"""The body of `tools/score.py`: scores of a detector's result file; no model needed."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rar_mmdet.errors import ResultFileError, UnknownCategoryError, UnknownImageError
from rar_mmdet.scoring.annotations import Detections, GroundTruth, load_annotation_file
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.comparison import Comparison, Interval, compare
from rar_mmdet.scoring.errors import MAX_PER_IMAGE, MEANINGS, ErrorReport, find_errors
from rar_mmdet.scoring.image_lists import check_known_images, of_images, read_image_ids
from rar_mmdet.scoring.protocols import (
    FIXED_SUFFIX,
    PROTOCOLS,
    Score,
    find_category_tree,
    read_checked_results,
    score,
    with_iou_type,
)
from rar_mmdet.scoring.settings import Protocol
from rar_mmdet.scoring.summaries import per_category_ap

__all__ = ["main"]

DESCRIPTION = """\
Score a detector's result file under the LVIS, COCO or V3Det protocol; no model needed.

  python tools/score.py results.bbox.json lvis_v1_val.json --protocol lvis
  python tools/score.py results.bbox.json v3det_2023_v1_val.json --protocol v3det --json numbers.json
  python tools/score.py ours.bbox.json lvis_v1_val.json --protocol lvis --compare baseline.bbox.json
  python tools/score.py results.bbox.json lvis_v1_val.json --protocol lvis --errors
  python tools/score.py results.bbox.json lvis_v1_val.json --protocol lvis-fixed --images minival.txt
"""
EPILOG = """\
Where results.bbox.json comes from: a test run writes it when the metric is told where,
  python tools/test.py CONFIG CHECKPOINT --cfg-options test_evaluator.0.outfile_prefix=out/results
(test_evaluator.outfile_prefix where the config has one evaluator, not a list): out/results.bbox.json and, with masks,
out/results.segm.json. Detectron2, YOLO tools and others write such files too. It is a JSON list of
  {"image_id": 42, "category_id": 18, "bbox": [x, y, width, height], "score": 0.9}
with the ids of the annotation file and boxes in pixels of the original photo. Files may be compressed by gzip.

Which protocol: lvis for files with neg_category_ids (federated annotation, APr APc APf; the 300 best detections of an
image count); lvis-fixed for these numbers and, beside them, fixed AP (..._fixed: the 10,000 best detections of a
category over the whole set and no limit per image, arXiv 2102.01066), which open-vocabulary detectors report: give it a
result file that was not cut per image; coco for all else; v3det for V3Det (300 detections per image and category, its
category tree, and AP_base and AP_novel). Numbers are lvis-api's and pycocotools' to the last digit; -1 means there is
nothing to find. Exit status: 0 scored, 2 something must be mended first.

Part of a set: --images takes a list of image ids (a JSON list, or one a line) or an annotation file, so that LVIS
minival is scored with lvis_v1_val.json and a list, or with minival's own annotation file.
"""
MANY_SEEN = 0.9  # of the images have a detection: below, a person is told that the others count as missed
LISTED_CLASSES = 20


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    run(parse_args(argv))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `--help` teaches."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", help="COCO-style result file, such as results.bbox.json")
    parser.add_argument("annotations", help="annotation file of the same images, such as lvis_v1_val.json")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), required=True, help="rules of scoring, see below")
    parser.add_argument("--metric", choices=("bbox", "segm"), default="bbox", help="boxes (default) or masks")
    parser.add_argument("--compare", metavar="OTHER", help="another result file: differences and their intervals")
    parser.add_argument("--resamples", type=int, default=200, help="draws of the bootstrap (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: %(default)s)")
    parser.add_argument(
        "--errors", action="store_true", help="also what went wrong: TIDE's errors of boxes and what each costs"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers at full precision")
    parser.add_argument("--classes", metavar="FILE", help="write AP (and differences) of every class as CSV")
    parser.add_argument(
        "--category-tree", metavar="FILE", help="V3Det's category tree; by default looked for beside the annotations"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--images", metavar="FILE", help="score only these images: a list of ids, or an annotation file")
    part.add_argument(
        "--seen-only", action="store_true", help="score only images that have a detection in the (first) result file"
    )
    args = parser.parse_args(argv)
    if args.resamples < 1:
        parser.error(f"--resamples {args.resamples}: expected a number from 1 on")
    if args.errors and args.metric != "bbox":
        parser.error("--errors tells errors of boxes apart: leave --metric segm out")
    return args


def run(args: argparse.Namespace) -> None:
    """Read, score, print and write."""
    protocol = with_iou_type(args.protocol, args.metric)
    chosen = None if args.images is None else read_image_ids(args.images)
    detections = read(args.results, protocol, chosen)
    truth = read_truth(args, protocol, detections, chosen)
    tell(truth.notes)
    tell_coverage(truth, detections)
    scored = score_file(args.results, truth, detections, protocol, tree_for(args, truth))
    tell(scored.notes)
    output: dict[str, Any] = dict(scored.numbers)
    if args.seen_only or chosen is not None:
        output["images_scored"] = truth.num_images
    print_numbers(args.results, output)
    print_left_out(scored)
    if args.errors:
        errors = find_errors(truth, detections, protocol)
        print_errors(errors, protocol)
        output |= errors.named()
    comparison = None
    if args.compare is not None:
        other = score_file(args.compare, truth, read(args.compare, protocol, chosen), protocol)
        tell(f"{args.compare}: {note}" for note in other.notes)
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
        write(args.json, json.dumps(output, indent=1) + "\n")
    if args.classes is not None:
        write_classes(args.classes, truth, per_category_ap(scored.result).tolist(), comparison)


def read(path: str, protocol: Protocol, image_ids: list[Any] | None = None) -> Detections:
    """A result file, with a progress bar on terminals; of some images only, where these are given."""
    size = os.path.getsize(path) if os.path.exists(path) else None
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=f"reading {Path(path).name}", file=sys.stderr, disable=None
    ) as bar:
        detections = read_checked_results(path, protocol, progress=bar.update)
    return detections if image_ids is None else of_images(detections, image_ids)


def score_file(
    path: str, truth: GroundTruth, detections: Detections, protocol: Protocol, tree: CategoryTree | None = None
) -> Score:
    """`score`, with the file in the message where it does not belong to the annotations."""
    try:
        return score(truth, detections, protocol, tree)
    except (UnknownImageError, UnknownCategoryError, ResultFileError) as error:
        raise type(error)(f"result file {path}: {error}") from None


def read_truth(
    args: argparse.Namespace, protocol: Protocol, detections: Detections, image_ids: list[Any] | None = None
) -> GroundTruth:
    """The annotations the arguments name."""
    masks = args.metric == "segm"
    dataset = load_annotation_file(args.annotations, keep_segmentations=masks)
    if not protocol.federated and is_federated(dataset):
        tell(
            [
                f"{args.annotations} is annotated in part (its images have neg_category_ids, as in LVIS): under "
                f"--protocol {args.protocol} objects that are not annotated count as errors. Is --protocol lvis meant?"
            ]
        )
    where = f"annotation file {args.annotations}"
    truth = GroundTruth.from_dataset(
        dataset,
        federated=protocol.federated,
        image_ids=set(detections.image_ids.tolist()) if args.seen_only else image_ids,
        keep_segmentations=masks,
        where=where,
    )
    if image_ids is not None:
        check_known_images(image_ids, truth.image_ids.tolist(), where)
    return truth


def is_federated(dataset: dict[str, Any]) -> bool:
    """The first image lists categories that are verified absent."""
    images = dataset.get("images")
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and "neg_category_ids" in first


def tree_for(args: argparse.Namespace, truth: GroundTruth) -> CategoryTree | None:
    """The category tree, under V3Det's protocol."""
    if args.protocol != "v3det":
        return None
    path = args.category_tree or find_category_tree(args.annotations)
    if path is None:
        tell(
            [
                "no category tree beside the annotations, so only the plain protocol is scored; give V3Det's "
                "v3det_2023_v1_category_tree.json with --category-tree for the second one"
            ]
        )
        return None
    return CategoryTree.load(path, truth.category_names, truth.category_ids.tolist())


def tell(notes: Iterable[str]) -> None:
    """Sentences a person should read before the numbers."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def tell_coverage(truth: GroundTruth, detections: Detections) -> None:
    """Say so where many images have no detection."""
    seen = len(set(detections.image_ids.tolist()))
    if seen < MANY_SEEN * truth.num_images:
        tell(
            [
                f"detections are of {seen} images, and the numbers are over all {truth.num_images} of the annotation "
                "file: every object of the others counts as missed. If a subset was tested, add --seen-only."
            ]
        )


def print_numbers(name: str, numbers: dict[str, float]) -> None:
    """One number a line."""
    print(f"\n{name}")
    for key, value in numbers.items():
        print(f"  {key:<20} {value:8d}" if isinstance(value, int) else f"  {key:<20} {value:8.4f}")


def print_left_out(scored: Score) -> None:
    """Detections that do not take part."""
    for reason, count in scored.result.matches.dropped.items():
        print(f"left out, as the reference API does: {count} detections ({reason})")


def print_comparison(args: argparse.Namespace, comparison: Comparison, truth: GroundTruth) -> None:
    """Differences of the numbers, and of the classes that differ most."""
    print(f"\n{args.results} minus {args.compare}: 95 % intervals of {args.resamples} paired draws of the images")
    print(f"  {'':<24} {'first':>8} {'other':>8} {'diff':>8}   interval")
    for key, interval in comparison.numbers.items():
        print_interval(f"{args.metric}_{key}{suffix_of(args)}", interval)
    order = sorted(
        (i for i, c in enumerate(comparison.per_category) if not math.isnan(c.difference)),
        key=lambda i: -abs(comparison.per_category[i].difference),
    )
    print(f"\nclasses that differ most (all {len(order)}: --classes FILE)")
    for i in order[:LISTED_CLASSES]:
        print_interval(truth.category_names[i][:24], comparison.per_category[i])


def suffix_of(args: argparse.Namespace) -> str:
    """What names of numbers that are compared end in: those of fixed AP are, where both are scored."""
    return FIXED_SUFFIX if PROTOCOLS[args.protocol].max_per_category is not None else ""


def print_errors(errors: ErrorReport, protocol: Protocol) -> None:
    """A line for each kind: how many, what average precision would gain without them, what it means."""
    print(
        f"\nerrors of the {MAX_PER_IMAGE[protocol.name]} best detections of each image, and what AP50 "
        f"({errors.average_precision:.4f}) would gain without them (TIDE)"
    )
    for name, gain in errors.gains.items():
        count = errors.counts.get(name)
        print(f"  {name:<5} {'' if count is None else count:>9} {gain:+8.4f}  {MEANINGS[name]}")


def print_interval(name: str, interval: Interval) -> None:
    """One difference a line; a star marks intervals that exclude zero."""
    mark = "*" if interval.is_clear else " "
    print(
        f"  {name:<24} {interval.first:8.4f} {interval.other:8.4f} {interval.difference:+8.4f} {mark} "
        f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    )


def interval_json(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON can hold it: null for NaN."""
    values = {
        "first": interval.first,
        "other": interval.other,
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
    }
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def comparison_json(comparison: Comparison, truth: GroundTruth, args: argparse.Namespace) -> dict[str, Any]:
    """The comparison for `--json`."""
    return {
        "other": args.compare,
        "resamples": args.resamples,
        "seed": args.seed,
        "numbers": {f"{args.metric}_{key}{suffix_of(args)}": interval_json(i) for key, i in comparison.numbers.items()},
        "classes": [
            {"id": category, "name": name, **interval_json(interval)}
            for category, name, interval in zip(
                truth.category_ids.tolist(), truth.category_names, comparison.per_category, strict=True
            )
            if not math.isnan(interval.difference)
        ],
    }


def write_classes(path: str, truth: GroundTruth, values: list[float], comparison: Comparison | None) -> None:
    """AP of every class as CSV."""
    rows = []
    extra = ["other", "difference", "low", "high"] if comparison is not None else []
    for k, value in enumerate(values):
        frequency = truth.frequencies[k] if truth.frequencies is not None else ""
        row = [truth.category_ids[k], truth.category_names[k], frequency, value]
        if comparison is not None:
            c = comparison.per_category[k]
            row += [c.other, c.difference, c.low, c.high]
        rows.append(row)
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "name", "frequency", "AP", *extra], *rows])
    except OSError as error:
        raise ResultFileError(f"--classes {path} cannot be written: {error.strerror}") from None


def write(path: str, text: str) -> None:
    """Write a file the user asked for."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultFileError(f"--json {path} cannot be written: {error.strerror}") from None
