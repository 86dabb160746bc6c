"""Time per photo against the number of names: boxes and a memory of names, beside a detector that reads the names.

    python benchmarks/vocabulary.py [--json FILE] [--figure FILE.png]

One tiny random Grounding DINO (MM-Grounding-DINO's class, 100 boxes) finds the boxes of both. Ours asks it once, for
"object", and the demo's CLIP names its boxes by one search in a memory of all names, which is made beforehand. The
other asks the same model for the names themselves, in chunks of 40. Both run on the same photo, in one process, in
turns, and CPU seconds count; the slow one runs three times at most. `flatness` is ours at the most names over ours at
the fewest: 1 means that names cost nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "detectors")]

from tiny_detectors import write_detector  # noqa: E402

from rar_mmdet import RegionRecognizer  # noqa: E402
from rar_mmdet.detectors import TransformersDetector  # noqa: E402
from rar_mmdet.emission import TopPairs  # noqa: E402

SIZES = (10, 80, 1203, 13204)  # a few words, COCO, LVIS, V3Det
BOXES = 100


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds of one call: what it takes where nothing else runs, as one thread does all and nothing waits."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Median CPU seconds per photo of both ways for every number of names."""
    torch.set_num_threads(1)
    photo = np.random.default_rng(0).integers(0, 255, (360, 480, 3), dtype=np.uint8)
    base = RegionRecognizer.from_config(ROOT / "configs/demo/clip_demo.py", vocabulary=["a", "b"])
    base.emission = TopPairs(max_per_image=300)
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is merged or left out: both have all boxes of the model.
        settings: dict[str, Any] = {"score_threshold": 0.0, "merge_iou": 1.0, "max_boxes": BOXES, "min_size": 1e-3}
        settings["model"] = str(write_detector(Path(folder), "mm-grounding-dino", num_queries=BOXES))
        ours = TransformersDetector(**settings, prompt="object")
        ways: dict[tuple[str, int], Callable[[], Any]] = {}
        for size in sizes:
            names = [f"red star {i}" for i in range(size)]
            recognizer = base.with_vocabulary(names)
            chunked = TransformersDetector(**settings, names=names)

            def recognise(recognizer: RegionRecognizer = recognizer) -> Any:
                found = ours.detect([photo])[0]
                return recognizer(photo, found.boxes_xyxy, found.scores.clamp(0, 1))

            def ask(chunked: TransformersDetector = chunked) -> Any:
                return chunked.detect([photo])

            ways["ours", size], ways["chunked", size] = recognise, ask
            recognise()  # loads, and makes the memory
            chunked.load()
        boxes = len(ours.detect([photo])[0])
        taken: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
        for number in range(repeats):  # in turns, so that a busy moment of the machine meets all
            for way, run in ways.items():
                if way[0] == "ours" or number < 3:
                    taken[way].append(timed(run))
    seconds = {way: {str(size): statistics.median(taken[way, size]) for size in sizes} for way in ("ours", "chunked")}
    first, last = str(sizes[0]), str(sizes[-1])
    return {
        "names": list(sizes),
        "boxes": boxes,
        "seconds_per_photo": seconds,
        "flatness": seconds["ours"][last] / seconds["ours"][first],
        "growth_of_chunked": seconds["chunked"][last] / seconds["chunked"][first],
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Both curves, on logarithmic axes."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for way, label in (("ours", "asked for boxes, then one search"), ("chunked", "asked for 40 names at a time")):
        axis.loglog(result["names"], list(result["seconds_per_photo"][way].values()), marker="o", label=label)
    axis.set(xlabel="names", ylabel="seconds per photo")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--figure", type=Path, help="draw them")
    parser.add_argument("--repeats", type=int, default=15, help="rounds; the median is reported (default: 15)")
    args = parser.parse_args()
    result = measure(SIZES, args.repeats)
    print(f"{'names':>8} {'ours':>10} {'chunked':>10}   CPU seconds per photo of {result['boxes']} boxes, one thread")
    for size in SIZES:
        ours, chunked = (result["seconds_per_photo"][way][str(size)] for way in ("ours", "chunked"))
        print(f"{size:>8} {ours:>10.3f} {chunked:>10.3f}")
    print(f"flatness {result['flatness']:.2f} (chunked: {result['growth_of_chunked']:.0f})")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.figure is not None:
        draw(result, args.figure)


if __name__ == "__main__":
    main()
