"""The main job on the embedded demo world: retrieval only and RAR, scored by MMDetection's test loop, in one table.

    python demo/run_demo.py                  # what `make demo` runs: the world of seed 0
    python demo/run_demo.py --seeds 0 1 2    # several worlds: mean and spread

Each row is one run of `tools/test.py` on `configs/demo/*.py`. The figures go to WORK_DIR/summary.json as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from rar_mmdet.drawing import draw_regions
from rar_mmdet.records import RegionRecord, read_records
from rar_mmdet.report import read_run
from rar_mmdet.report.command import write_report

NUM_PHOTOS = 8
HERE = Path(__file__).resolve().parent
# Beside demo/ in a checkout as well as in an installed package.
CONFIGS, TOOLS = HERE.parent / "configs" / "demo", HERE.parent / "tools"
ROWS = {"retrieval": ("retrieval only", "clip_demo.py"), "rar": ("RAR", "rar_demo.py")}
COLUMNS = ["AP", "AP_r", "AP_c", "AP_f", "AP_s", "AP_m", "AP_l", "top1", "recall5", "s_per_image"]
HEADINGS = ["AP", "AP_r", "AP_c", "AP_f", "AP_s", "AP_m", "AP_l", "top-1", "recall@5", "s/image"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the demo worlds (default: 0)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where worlds are written (default: data)")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs/demo"), help="results (default: work_dirs/demo)"
    )
    return parser.parse_args()


def make_world(data: Path, seed: int) -> Path:
    """The world of a seed; written once."""
    root = data / ("demo" if seed == 0 else f"demo_seed{seed}")
    subprocess.run([sys.executable, HERE / "make_world.py", "--out", root, "--seed", str(seed)], check=True)
    return root


def run_test(row: str, root: Path, work_dir: Path) -> dict[str, float]:
    """One run of tools/test.py; its metrics by the names of COLUMNS. Its tables go to a file, its bar is shown."""
    config = CONFIGS / ROWS[row][1]
    ann_file = root / "annotations" / "lvis_demo_test.json"
    command = [sys.executable, TOOLS / "test.py", config, "--work-dir", work_dir, "--no-cache", "--cfg-options"]
    command += [
        f"test_dataloader.dataset.data_root={root}/",
        f"test_evaluator.0.ann_file={ann_file}",
        f"test_evaluator.1.ann_file={ann_file}",
        f"model.recognizer.vocabulary={ann_file}",
    ]
    work_dir.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # tiny weights need no bar
    with open(work_dir / "tables.log", "w", encoding="utf-8") as tables:
        done = subprocess.run([str(part) for part in command], stdout=tables, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{config} ended with status {done.returncode}; it said why above or in {tables.name}")
    summary = json.loads((work_dir / "summary.json").read_text(encoding="utf-8"))
    return {**pick(summary["metrics"]), "s_per_image": summary["seconds_per_image"]}


def pick(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of the table, fractions of 1."""
    names = {
        "AP": "lvis/bbox_AP", "AP_r": "lvis/bbox_APr", "AP_c": "lvis/bbox_APc", "AP_f": "lvis/bbox_APf",
        "AP_s": "lvis/bbox_APs", "AP_m": "lvis/bbox_APm", "AP_l": "lvis/bbox_APl",
        "top1": "recognition/top1", "recall5": "recognition/recall@5",
    }  # fmt: skip
    return {ours: metrics[theirs] for ours, theirs in names.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def table(summary: dict[str, dict[str, float]], std: dict[str, dict[str, float]] | None = None) -> str:
    """The table as text: percent, seconds for the last column."""
    lines = [f"{'':16}" + "".join(f"{h:>12}" for h in HEADINGS)]
    for row, values in summary.items():
        cells = []
        for column in COLUMNS:
            value, unit = values[column], 1 if column == "s_per_image" else 100
            text = f"{value * unit:.3f}" if unit == 1 else f"{value * unit:.1f}"
            cells.append(f"{text} ±{std[row][column] * unit:.1f}" if std and unit == 100 else text)
        lines.append(f"{ROWS[row][0]:16}" + "".join(f"{c:>12}" for c in cells))
    return "\n".join(lines)


def draw_photos(records: Path, folder: Path, most: int = NUM_PHOTOS) -> None:
    """Photos on which ranking changed the most names, drawn with "retrieved -> ranked" on each box."""
    by_photo: dict[str, list[RegionRecord]] = {}
    for record in read_records(records):
        by_photo.setdefault(record.file or str(record.image), []).append(record)
    changed = {photo: sum(names_of(r)[0] != names_of(r)[1] for r in found) for photo, found in by_photo.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(sorted(changed, key=lambda p: (-changed[p], p))[:most], 1):
        found = by_photo[photo]
        boxes = torch.tensor([r.box_xyxy for r in found])
        labels = [" -> ".join(dict.fromkeys(names_of(r))) for r in found]
        draw_regions(photo, boxes, labels, [best_label(r) for r in found]).save(folder / f"{number}.jpg", quality=90)


def names_of(record: RegionRecord) -> tuple[str, str]:
    """The name of retrieval, and the one after ranking."""
    return record.names[0], record.names[record.category_ids.index(best_label(record))]


def best_label(record: RegionRecord) -> int:
    """Label of the best fused score."""
    return record.category_ids[max(range(len(record.fused)), key=lambda column: record.fused[column])]


def main() -> None:
    args = parse_args()
    per_seed: dict[int, dict[str, dict[str, float]]] = {}
    for seed in args.seeds:
        print(f"The demo world of seed {seed}: 800 photos, 600 classes")
        root = make_world(args.data, seed)
        per_seed[seed] = {}
        for row, (title, config) in ROWS.items():
            print(f"{title}: 280 test photos (configs/demo/{config})", flush=True)
            per_seed[seed][row] = run_test(row, root, args.work_dir / f"seed{seed}" / row)
    spreads = {row: {c: spread([per_seed[s][row][c] for s in args.seeds]) for c in COLUMNS} for row in ROWS}
    summary = {row: {c: spreads[row][c]["mean"] for c in COLUMNS} for row in ROWS}
    std = {row: {c: spreads[row][c]["std"] for c in COLUMNS} for row in ROWS} if len(args.seeds) > 1 else None
    content: dict = dict(summary)
    if std:
        content |= {"std": std, "seeds": {str(s): per_seed[s] for s in args.seeds}}
    path = args.work_dir / "summary.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    rar = args.work_dir / f"seed{args.seeds[0]}" / "rar"
    draw_photos(rar / "regions.jsonl", args.work_dir / "photos")
    worlds = f"seed {args.seeds[0]}" if not std else f"mean ± standard deviation of seeds {args.seeds}"
    print(f"\nDemo world, test split, annotated boxes, {worlds}; percent\n\n{table(summary, std)}\n")
    print(f"numbers   {path}\nrecords   {rar / 'regions.jsonl'}  (one line for each region)")
    write_report([read_run(rar, "RAR")], args.work_dir / "report.html", title="The demo world: retrieval and ranking")
    print(f"report    {args.work_dir / 'report.html'}  (opens in any browser)")
    print(f"photos    {args.work_dir / 'photos'}  ({NUM_PHOTOS}, retrieved -> ranked)\nlogs      {rar.parent}/*/*.log")
    print("next      README.md, 'Five lines'; docs/five_jobs.md; docs/your_data.md")


if __name__ == "__main__":
    main()
