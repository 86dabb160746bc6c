"""`rar-mmdet label` on the photos of the demo world, with boxes that are found and not given, against the truth.

    python demo/run_label_demo.py       # what `make label-demo` runs

Words are the 600 names of the world. A label is right if its box overlaps an object of that name by 0.5 or more (each
object once). The test photos are labelled twice: as they come, and with what was learned from 240 other photos (the
calibration photos of two worlds) by --apply and --learned. WORK_DIR gets the labels, the review pages and summary.json.
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
from rar_mmdet.labelling.learning import Learned
from rar_mmdet.labelling.review import review_order
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.scoring.recognition import match_truth

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "demo" / "rar_demo.py"
CORRECTED = 100
PRECISION = 0.95


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="the world (default: data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world whose test photos are labelled (default: 0)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/label-demo"))
    parser.add_argument("--min-score", type=float, default=0.5, help="of labels (default: 0.5)")
    return parser.parse_args()


def gather(split: str, worlds: list[Path], folder: Path) -> dict[str, Any]:
    """Links to a split's photos of some worlds, a folder for each, and their annotations as one COCO dictionary."""
    whole: dict[str, Any] = {"images": [], "annotations": []}
    for number, world in enumerate(worlds):
        own = json.loads((world / "annotations" / f"lvis_demo_{split}.json").read_text(encoding="utf-8"))
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        start = len(whole["images"])
        ids = {image["id"]: start + place for place, image in enumerate(own["images"], 1)}
        for image in own["images"]:
            parts = image["coco_url"].split("/")[-2:]
            link = folder / str(number) / parts[-1]
            if not link.exists():
                link.symlink_to((world / "/".join(parts)).resolve())
            whole["images"].append({"id": ids[image["id"]], "file_name": f"{number}/{parts[-1]}"})
        for a in own["annotations"]:
            number_of_box = len(whole["annotations"]) + 1
            box = {
                "id": number_of_box,
                "image_id": ids[a["image_id"]],
                "category_id": a["category_id"],
                "bbox": a["bbox"],
            }
            whole["annotations"].append(box)
        whole["categories"] = [{"id": c["id"], "name": c["name"].replace("_", " ")} for c in own["categories"]]
    return whole


def truth_of(annotations: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Photo -> boxes (G, 4) xyxy and 0-based labels (G,)."""
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
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
    """Precision and coverage of the labels, and the order of the queue."""
    right: dict[tuple[str, int], int] = {}  # region -> true label, -1 where no object is
    for state, records in run.regions():
        boxes = np.array([record.box_xyxy for record in records], float).reshape(-1, 4)
        labels = match_truth(boxes, *truth[state.name])
        right |= {(state.name, record.region): int(label) for record, label in zip(records, labels, strict=True)}
    objects = sum(len(labels) for _, labels in truth.values())
    queue = [(d, (state.name, record.region)) for d, state, record in review_order(run) if d.class_id is not None]
    wrong = np.array([right[key] != d.class_id for d, key in queue])
    good, first = int((~wrong).sum()), int(wrong[:CORRECTED].sum())
    return {
        "boxes": len(right),
        "found": sum(label >= 0 for label in right.values()) / objects,
        "labels": len(queue),
        "min_score": run.min_score,
        "precision": good / max(len(queue), 1),
        "coverage": good / objects,
        "queue_recall25": float(wrong[: len(queue) // 4].sum() / max(wrong.sum(), 1)),
        "wrong_among_corrected": first,
        "precision_after_corrections": (good + first) / max(len(queue), 1),
    }


def hundred_corrections(run: LabelRun, truth: dict[str, tuple[np.ndarray, np.ndarray]]) -> Learned:
    """What the first labels of a run's queue teach when a person goes through them."""
    matched: dict[str, np.ndarray] = {}
    for state, records in run.regions():
        boxes = np.array([record.box_xyxy for record in records], float).reshape(-1, 4)
        matched[state.name] = match_truth(boxes, *truth[state.name])
    queue = [(state.name, record.region) for d, state, record in review_order(run) if d.class_id is not None]
    labels = {(name, region): int(matched[name][region]) for name, region in queue[:CORRECTED]}
    return run.correct({key: None if label < 0 else label for key, label in labels.items()})


def label(photos: Path, words: Path, out: Path, *more: str) -> None:
    """The command."""
    line = ["label", str(photos), "--words", str(words), "--embedded", "--out", str(out), *more]
    print("\n$ rar-mmdet " + " ".join(line), flush=True)
    if rar_mmdet(line):
        raise SystemExit(1)


def open_run(photos: Path, words: Path, out: Path, min_score: float, **more: Any) -> LabelRun:
    """A run that was made before."""
    settings = json.loads((out / "run.json").read_text(encoding="utf-8"))
    labeller = Labeller(RegionRecognizer.from_config(CONFIG), read_words(words), WholePhoto(), min_score)
    kept = {key: settings[key] for key in settings if key not in ("photos", "words")}
    return LabelRun(labeller, photos, out, kept, **more)


def main() -> None:
    args = parse_args()
    seeds = (args.seed, args.seed + 1)
    worlds = [args.data.with_name(f"{args.data.name}_seed{seed}") if seed else args.data for seed in seeds]
    for seed, world in zip(seeds, worlds, strict=True):
        subprocess.run([sys.executable, HERE / "make_world.py", "--out", world, "--seed", str(seed)], check=True)
    work: Path = args.work_dir
    test, calib, words = work / "photos", work / "reviewed_photos", work / "words.txt"
    annotations, reviewed = gather("test", worlds[:1], test), gather("calib", worlds, calib)
    words.write_text("".join(f"{c['name']}\n" for c in annotations["categories"]), encoding="utf-8")
    (work / "reviewed.json").write_text(json.dumps(reviewed), encoding="utf-8")
    truth = truth_of(annotations)

    label(test, words, work / "labels", "--overwrite", "--min-score", str(args.min_score))
    plain = judge(open_run(test, words, work / "labels", args.min_score), truth)

    label(calib, words, work / "reviewed_labels", "--overwrite")
    run = open_run(calib, words, work / "reviewed_labels", args.min_score)
    hundred = hundred_corrections(run, truth_of(reviewed))
    first = open_run(test, words, work / "labels", args.min_score)
    first.labeller = first.labeller.taught(hundred)
    after = judge(first, truth)
    label(calib, words, work / "reviewed_labels", "--apply", str(work / "reviewed.json"))

    learned = ["--overwrite", "--learned", str(work / "reviewed_labels"), "--precision", str(PRECISION)]
    label(test, words, work / "labels_learned", *learned)
    sure = judge(open_run(test, words, work / "labels_learned", args.min_score, precision=PRECISION), truth)
    best = judge(open_run(test, words, work / "labels_learned", args.min_score), truth)

    rows = {
        f"as they come, score >= {args.min_score}": plain,
        f"{CORRECTED} corrections elsewhere, score >= {args.min_score}": after,
        f"{len(reviewed['images'])} photos reviewed, score >= {args.min_score}": best,
        f"{len(reviewed['images'])} photos reviewed, --precision {PRECISION}": sure,
    }
    summary = {"photos": len(truth), "objects": sum(len(labels) for _, labels in truth.values()), **best}
    summary |= {"rows": rows, "learned": hundred.describe()}
    (work / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"\n{plain['boxes']} boxes found in {summary['photos']} photos cover {plain['found']:.1%} of "
        f"{summary['objects']} objects\n\n{'':<44}{'labels':>8}{'right':>8}{'of objects':>12}{'queue':>8}"
    )
    for name, row in rows.items():
        print(
            f"{name:<44}{row['labels']:>8}{row['precision']:>8.1%}{row['coverage']:>12.1%}{row['queue_recall25']:>8.1%}"
        )
    print(
        f"queue: wrong labels that stand in the first quarter of the review queue\n\n{CORRECTED} corrections in the "
        f"order of the queue mend {best['wrong_among_corrected']} labels of these photos: "
        f"{best['precision_after_corrections']:.1%} right\n"
        f"page      {work / 'labels_learned' / 'review.html'}\nnumbers   {work / 'summary.json'}"
    )


if __name__ == "__main__":
    main()
