"""What a report costs at the size of LVIS val, and how large its page is.

    python benchmarks/report.py [--json FILE] [--regions 244707] [--names 1203]

Records are synthetic: a retriever and a ranker (asked by letter, in five orders) that are sometimes right, a third of
the errors among 400 pairs of names, a tenth of the regions without an object, photos of noise, which JPEG keeps badly.

- `report_s`, `report_cpu_s`, `report_gib`: from the records to the page and its tables, in a process of its own,
  imports included: by the clock, of the processor, and peak memory.
- `report_read_cpu_s`: of that, reading the records.
- `report_mb`: the page with everything it shows.
- `report_opens_s`: until Chromium has laid it out (left out without Chromium).
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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from rar_mmdet.records import RegionRecord, write_records
from rar_mmdet.report import read_run
from rar_mmdet.report.command import write_report

LVIS_VAL_BOXES, LVIS_NAMES = 244_707, 1203
KEPT, ASKED, PHOTOS = 20, 5, 50


def synthetic(count: int, num_names: int, folder: Path) -> Path:
    """A folder of a run with that many regions."""
    rng = np.random.default_rng(0)
    names = [f"a category with a longish name, number {i}" for i in range(num_names)]
    photos = []
    for number in range(PHOTOS):
        photos.append(str(folder / f"{number}.jpg"))
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(photos[-1], quality=90)
    twins = rng.permutation(num_names)[:400]

    def record(row: int) -> RegionRecord:
        truth = int(rng.choice(twins)) if rng.uniform() < 0.3 else int(rng.integers(num_names))
        others = [int(i) for i in rng.permutation(num_names)[: KEPT + 1] if i != truth][:KEPT]
        others[0] = (truth + 1) % num_names if truth in twins else others[0]
        ids = list(dict.fromkeys(others))
        place = min(int(rng.exponential(2)), len(ids) - 1)
        if rng.uniform() < 0.9 and truth not in ids:
            ids[place] = truth
        probs = np.sort(rng.dirichlet(np.full(len(ids) + 5, 0.3)))[::-1][: len(ids)].tolist()
        scores = rng.normal(0, 2, ASKED) + [3.0 * (i == truth) for i in ids[:ASKED]]
        log_probs = scores - np.logaddexp.reduce(scores)
        order = np.argsort(-log_probs).tolist()
        fused = [*(np.exp(log_probs) * sum(probs[:ASKED])).tolist(), *probs[ASKED:]]
        x, y, side = rng.uniform(0, 300), rng.uniform(0, 200), float(np.exp(rng.uniform(2.5, 5.5)))
        there = rng.uniform() < 0.9
        return RegionRecord(
            image=row // 12,
            region=row % 12,
            box_xyxy=(x, y, x + side, y + side),
            box_score=1.0,
            category_ids=tuple(ids),
            names=tuple(names[i] for i in ids),
            probs=tuple(round(value, 7) for value in probs),
            fused=tuple(round(value, 7) for value in fused),
            status="ok",
            order=tuple(order),
            log_probs=tuple(log_probs.tolist()),
            presence=float(rng.uniform()),
            preferred=tuple(rng.choice(order[:2], ASKED).tolist()),
            truth=truth if there else None,
            truth_name=names[truth] if there else None,
            file=photos[row % PHOTOS],
        )

    write_records(folder / "regions.jsonl", (record(row) for row in tqdm(range(count), "write records", disable=None)))
    return folder


def worker(folder: Path) -> None:
    """Write the page; prints what it took as JSON."""
    start = time.process_time()
    run = read_run(folder)
    read = time.process_time() - start
    page = write_report([run], folder / "report.html", with_csv=True)
    numbers = {
        "report_cpu_s": time.process_time(),
        "report_read_cpu_s": read,
        "report_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
        "report_mb": page.stat().st_size / 1e6,
    }
    print(json.dumps(numbers))


def opens(page: Path, folder: Path) -> float | None:
    """Seconds until a browser has the page laid out, its own start included."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return None
    start = time.perf_counter()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/browser"]
    picture = f"--screenshot={folder}/page.png"
    subprocess.run([browser, *flags, picture, page.as_uri()], capture_output=True, timeout=300, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--regions", type=int, default=LVIS_VAL_BOXES)
    parser.add_argument("--names", type=int, default=LVIS_NAMES)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker)
        return
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = synthetic(args.regions, args.names, Path(name))
        start = time.perf_counter()
        command = [sys.executable, __file__, "--worker", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        numbers["report_s"] = time.perf_counter() - start
        numbers |= json.loads(done.stdout.splitlines()[-1])
        seconds = opens(folder / "report.html", folder)
        if seconds is not None:
            numbers["report_opens_s"] = seconds
    for key, value in numbers.items():
        print(f"{key:<18} {value:.2f}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
