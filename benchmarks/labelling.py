"""What `rar-mmdet label` costs beside its models: reading, cutting, writing, and the review page.

    python benchmarks/labelling.py [--json FILE] [--labels 1000000] [--photos 1000]

- `own_share`: the part of a run over demo photos in which neither the encoder's nor the ranker's forward pass goes on:
  waiting for photos (the next are read while models work), cutting, search, records, writing COCO. Every photo is
  another file; the demo's models. On a busy machine the models' threads wait for one another: a smaller share.
- `writer_s`, `writer_mib`: the slowest format and the most memory over the process's, for --labels labels, ten a photo.
  `crops` is no label file and is left out.
- `page_mb`, `page_s`: a review page of 5,000 boxes, and how long it takes until a browser has drawn its first picture
  (left out without Chromium).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rar_mmdet import RegionRecognizer
from rar_mmdet.detectors import AnnotationDetector
from rar_mmdet.labelling import FORMATS, Labeller, LabelRun
from rar_mmdet.labelling.photos import Label, LabelledPhoto
from rar_mmdet.labelling.review import write_review

ROOT = Path(__file__).resolve().parents[1]
WORLD = ROOT / "data" / "demo"
BOXES = 10
NAMES = [f"class {i}" for i in range(1203)]


def write_labels(name: str, count: int, folder: Path) -> None:
    """Write that many labels in one format; prints seconds and peak MiB above the start as JSON."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (BOXES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 300, (BOXES, 2))], axis=1)
    labels = tuple(Label(tuple(box), int(rng.integers(len(NAMES))), 0.5) for box in boxes.tolist())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    writer = FORMATS[name](folder, NAMES)
    for number in range(1, count // BOXES + 1):
        photo = f"{number // 1000:04d}/{number:07d}.jpg"
        writer.add(LabelledPhoto(number, photo, Path("/photos") / photo, 640, 640, labels))
    writer.finish()
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"s": time.perf_counter() - start, "mib": mib}))


def writers(count: int) -> dict[str, float]:
    """Seconds and memory of each format, each in a process of its own."""
    numbers: dict[str, float] = {}
    for name in FORMATS:
        if name == "crops":
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--writer", name, str(count), folder]
            done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"  {name:<14} {done['s']:6.1f} s  +{done['mib']:5.0f} MiB", flush=True)
        numbers |= {f"{name}_s": done["s"], f"{name}_mib": done["mib"]}
    numbers["writer_s"] = max(value for key, value in numbers.items() if key.endswith("_s"))
    numbers["writer_mib"] = max(value for key, value in numbers.items() if key.endswith("_mib"))
    return numbers


def world(photos: int, folder: Path) -> tuple[Path, Path]:
    """Photos of the demo world under new names, as often as needed, and their boxes."""
    truth = [json.loads(file.read_text()) for file in sorted((WORLD / "annotations").glob("lvis_demo_*.json"))]
    images = [(image, part) for part in truth for image in part["images"]]
    boxes: dict[int, list[Any]] = {}
    for part in truth:
        for annotation in part["annotations"]:
            boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    out: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    (folder / "photos").mkdir()
    for number in range(photos):
        image, _ = images[number % len(images)]
        name = f"{number:06d}.jpg"
        source = WORLD / "/".join(image["coco_url"].split("/")[-2:])
        (folder / "photos" / name).symlink_to(source.resolve())
        out["images"].append({"id": number, "file_name": name})
        for box in boxes.get(image["id"], []):
            record = {"id": len(out["annotations"]) + 1, "image_id": number, "category_id": 1, "bbox": box}
            out["annotations"].append(record)
    (folder / "boxes.json").write_text(json.dumps(out))
    return folder / "photos", folder / "boxes.json"


def labelling(photos: int, folder: Path) -> dict[str, float]:
    """Share of a run that is no model's, and the page."""
    place, boxes = world(photos, folder)
    recognizer = RegionRecognizer.from_config(ROOT / "configs" / "demo" / "rar_demo.py")
    labeller = Labeller(recognizer, list(recognizer.category_names), AnnotationDetector(boxes))
    labeller.recognizer.load()
    seconds = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal seconds
            start = time.perf_counter()
            result = call(*args, **kwargs)
            seconds += time.perf_counter() - start
            return result

        return wrapped

    _ = labeller.recognizer.memory
    recognizer.encoder.encode_images = timed(recognizer.encoder.encode_images)
    assert recognizer.ranker is not None
    recognizer.ranker.rank = timed(recognizer.ranker.rank)
    start = time.perf_counter()
    run = LabelRun(labeller, place, folder / "labels")
    counts = run.run()
    run.write(["coco"])
    total = time.perf_counter() - start
    print(
        f"  {photos} photos, {counts['regions']} boxes: {total:.1f} s, {seconds:.1f} s of it in the models", flush=True
    )
    numbers = {"label_s": total, "own_share": 1 - seconds / total}
    page = folder / "labels" / "review.html"
    start = time.perf_counter()
    shown = write_review(run, page, most=5000)
    numbers |= {"page_boxes": shown, "page_write_s": time.perf_counter() - start, "page_mb": page.stat().st_size / 1e6}
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is not None:
        numbers["page_s"] = first_picture(browser, page, folder)
    return numbers


def first_picture(browser: str, page: Path, folder: Path) -> float:
    """Seconds from the start of loading until the first picture is there, by the browser's own clock."""
    probe = (
        "<script>const tick = () => { const i = document.querySelector('#list img'); if (i && i.complete && "
        "i.naturalWidth) document.body.dataset.probe = performance.now(); else setTimeout(tick, 5); }; tick();</script>"
    )
    page.write_text(page.read_text(encoding="utf-8") + probe, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/browser", "--timeout=10000"]
    done = subprocess.run(
        [browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return float(done.stdout.split('data-probe="')[1].split('"')[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the numbers")
    parser.add_argument("--labels", type=int, default=1_000_000, help="labels to write (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=1000, help="photos to label (default: %(default)s)")
    parser.add_argument("--writer", nargs=3, metavar=("FORMAT", "COUNT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.writer is not None:
        write_labels(args.writer[0], int(args.writer[1]), Path(args.writer[2]))
        return
    torch.set_grad_enabled(False)
    print(f"{args.labels} labels in each format")
    numbers = writers(args.labels)
    if not (WORLD / "world.json").is_file():
        subprocess.run([sys.executable, ROOT / "demo" / "make_world.py", "--out", WORLD, "--seed", "0"], check=True)
    print("the demo's photos and models")
    with tempfile.TemporaryDirectory() as folder:
        numbers |= labelling(args.photos, Path(folder))
    for key, value in numbers.items():
        print(f"{key:<20} {value:10.3f}")
    if args.json is not None:
        Path(args.json).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
