"""`rar-mmdet label` on the photos of the demo world, with boxes that are found and not given, against the truth.

    python demo/run_label_demo.py       # what `make label-demo` runs

Words are the 600 names of the world. A label is right if its box overlaps an object of that name by 0.5 or more (each
object once). WORK_DIR gets the labels, the review page and summary.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.labelling import Labeller, LabelRun, WholePhoto, read_words
from rar_mmdet.labelling.review import review_order
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.scoring.recognition import match_truth

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "demo" / "rar_demo.py"
CORRECTED = 100


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="the world (default: data/demo)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/label-demo"))
    parser.add_argument("--min-score", type=float, default=0.5, help="of labels (default: 0.5)")
    return parser.parse_args()


def truth_of(annotations: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Photo -> boxes (G, 4) xyxy and 0-based labels (G,)."""
    names = {image["id"]: image["coco_url"].split("/")[-1] for image in annotations["images"]}
    row = {category["id"]: place for place, category in enumerate(annotations["categories"])}
    found: dict[str, list[Any]] = {name: [] for name in names.values()}
    for a in annotations["annotations"]:
        x, y, width, height = a["bbox"]
        found[names[a["image_id"]]].append(([x, y, x + width, y + height], row[a["category_id"]]))
    return {
        name: (np.array([b for b, _ in own], float).reshape(-1, 4), np.array([k for _, k in own], np.int64))
        for name, own in found.items()
    }


def judge(run: LabelRun, truth: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Precision and coverage of the labels, the order of the queue, and what corrections bring."""
    right: dict[tuple[str, int], int] = {}  # region -> true label, -1 where no object is
    for state, records in run.regions():
        boxes = np.array([record.box_xyxy for record in records], float).reshape(-1, 4)
        labels = match_truth(boxes, *truth[state.name])
        right |= {(state.name, record.region): int(label) for record, label in zip(records, labels, strict=True)}
    objects = sum(len(labels) for _, labels in truth.values())
    queue = review_order(run)
    decided = [(state.name, record.region, run.labeller.decide(record)) for _, state, record in queue]
    labelled = [(name, region, d.class_id) for name, region, d in decided if d.class_id is not None]
    good = sum(right[name, region] == label for name, region, label in labelled)
    wrong = np.array([right[name, region] != label for name, region, label in labelled])
    quarter = len(labelled) // 4
    wrong_first = int(wrong[:CORRECTED].sum())
    return {
        "photos": len(truth),
        "objects": objects,
        "boxes": len(right),
        "found": sum(label >= 0 for label in right.values()) / objects,
        "labels": len(labelled),
        "precision": good / max(len(labelled), 1),
        "coverage": good / objects,
        "queue_recall25": float(wrong[:quarter].sum() / max(wrong.sum(), 1)),
        "precision_after_corrections": (good + wrong_first) / max(len(labelled), 1),
        "wrong_among_corrected": wrong_first,
    }


def main() -> None:
    args = parse_args()
    subprocess.run([sys.executable, HERE / "make_world.py", "--out", args.data, "--seed", "0"], check=True)
    file = args.data / "annotations" / "lvis_demo_test.json"
    annotations = json.loads(file.read_text(encoding="utf-8"))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    words = args.work_dir / "words.txt"
    words.write_text("".join(f"{c['name'].replace('_', ' ')}\n" for c in annotations["categories"]), encoding="utf-8")
    photos = args.work_dir / "photos"
    photos.mkdir(exist_ok=True)
    for image in annotations["images"]:
        link = photos / image["coco_url"].split("/")[-1]
        if not link.exists():
            link.symlink_to((args.data / "/".join(image["coco_url"].split("/")[-2:])).resolve())
    out = args.work_dir / "labels"
    line = ["label", str(photos), "--words", str(words), "--embedded", "--out", str(out), "--overwrite"]
    if rar_mmdet([*line, "--min-score", str(args.min_score)]):
        raise SystemExit(1)
    settings = json.loads((out / "run.json").read_text(encoding="utf-8"))
    recognizer = RegionRecognizer.from_config(CONFIG)  # decides; nothing is loaded
    labeller = Labeller(recognizer, read_words(words), WholePhoto(), args.min_score)
    run = LabelRun(labeller, photos, out, {key: settings[key] for key in ("config", "boxes")})
    summary = judge(run, truth_of(annotations))
    (args.work_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"{summary['boxes']} boxes found in {summary['photos']} photos cover {summary['found']:.1%} of "
        f"{summary['objects']} objects\n"
        f"{summary['labels']} labels with a score of {args.min_score} or more: {summary['precision']:.1%} right, which "
        f"is {summary['coverage']:.1%} of the objects\n"
        f"{summary['queue_recall25']:.1%} of the wrong labels stand in the first quarter of the review queue\n"
        f"{CORRECTED} corrections in its order mend {summary['wrong_among_corrected']} labels: "
        f"{summary['precision_after_corrections']:.1%} right\n"
        f"page      {out / 'review.html'}\nnumbers   {args.work_dir / 'summary.json'}"
    )


if __name__ == "__main__":
    main()
