"""Teach a model that has never ranked to rank, on two sources, and see it rank classes of neither (RAR's Table 6).

    python demo/run_finetune_demo.py                 # what `make finetune-demo` runs

The base sees and names (demo/weights/base_ranker). It is asked as it is, with an example of the format ("in context"),
and with a LoRA adapter trained by `rar-mmdet finetune train` on source A or B, three seeds each; both sources have
other classes than the photos it is asked about. Every question has five names, the true one and the four that the
retriever finds most alike, shuffled: chance is 20 %. Answers are read by the likelihood of each name.

WORK_DIR/summary.json has rank-1 as means over the seeds, also with blank photos; WORK_DIR/classify/ has
the rows of `rar-mmdet classify`, where the retriever chooses the names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rar_mmdet.classification.command import recipe_of
from rar_mmdet.classification.draws import stratified_sample
from rar_mmdet.classification.vectors import PhotoVectors, encode_class_texts
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.components import build_component, read_config
from rar_mmdet.finetune.checks import look_at
from rar_mmdet.finetune.rows import RankingRow, TaughtQuestions
from rar_mmdet.regions import RegionCropper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from make_few_shot_world import HELD_OUT, SOURCES, make_few_shot_world  # noqa: E402

CONFIGS = HERE.parent / "configs"  # beside demo/ in a checkout as well as in an installed package
NAMES = 5  # of a question
PHOTOS = 240  # asked about
SHOTS = 4  # exemplars of the rows of `classify`


def run(*words: Any) -> None:
    """One command of rar-mmdet; what it says is shown."""
    if status := rar_mmdet([str(word) for word in words]):
        sys.exit(status)


def questions(data: Path, seed: int) -> list[RankingRow]:
    """About test photos of the held-out world: the true name and the four most alike for the retriever, shuffled."""
    config = read_config(CONFIGS / "classification" / "demo.py")
    recipe = recipe_of({**config, "dataset": {"type": "folders", "root": str(data)}, "ranker": None}, data)
    recipe.encoder.load("cpu")
    photos = stratified_sample(recipe.dataset.test, PHOTOS, seed)
    likeness = PhotoVectors(recipe.encoder, recipe.cropper, None)(photos) @ encode_class_texts(
        recipe.encoder, recipe.dataset
    )
    rng, rows = np.random.default_rng(seed), []
    for photo, like in zip(photos, likeness, strict=True):
        wrong = [label for label in like.argsort(descending=True).tolist() if label != photo.label][: NAMES - 1]
        shown = rng.permutation([photo.label, *wrong]).tolist()
        truth = shown.index(photo.label)
        target = (truth, *(place for place in range(NAMES) if place != truth))
        rows.append(RankingRow(photo.path, tuple(recipe.dataset.display_names[c] for c in shown), truth, target))
    return rows


def rank_one(
    rows: list[RankingRow], prompt: str, device: str, adapter: Path | None = None, is_blank: bool = False
) -> float:
    """Share of right first names."""
    settings = read_config(CONFIGS / "finetune" / "demo.py")["ranker"]
    settings |= {"ask": {"type": "Likelihood", "prompt": prompt}, "adapter": adapter}
    ranker = build_component(settings, "ranker")
    ranker.load(device)
    cropper = RegionCropper(window="pad").with_size(ranker.crop_size)
    look = look_at(ranker, TaughtQuestions(rows, [ranker.ask], cropper, ranker.special_tokens()), is_blank=is_blank)
    return look.rank_one


def train(source: str, seed: int, work: Path, device: str) -> tuple[Path, float | None]:
    """An adapter, and the minutes it took; nothing is done where it is there, and no minutes are known."""
    out, records = work / source / f"seed{seed}", work / source / "data" / "records.jsonl"
    if (out / "summary.json").is_file():
        return out / "adapter", None
    started = time.monotonic()
    options = [f"records={records}", f"schedule.seed={seed}"]
    run(
        "finetune",
        "train",
        CONFIGS / "finetune" / "demo.py",
        "--out",
        out,
        "--device",
        "cpu",
        "--cfg-options",
        *options,
    )
    return out / "adapter", (time.monotonic() - started) / 60


def classify(work: Path, name: str, adapter: Path | None, prompt: str, device: str) -> dict[str, float]:
    """Accuracy of rows of `rar-mmdet classify` with this ranker."""
    options = [f"ranker.ask.prompt={prompt}", *([] if adapter is None else [f"ranker.adapter={adapter}"])]
    out = work / "classify" / name
    config = CONFIGS / "classification" / "demo_base.py"
    words = ("--shots", SHOTS, "--seeds", 1, "--rows", "text+rar", "knn+rar", "--device", device, "--out", out)
    run("classify", config, *words, "--cfg-options", *options)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    return {row: by[str(SHOTS)] for row, by in rows.items()}


def table(found: dict[str, list[float]], rows: dict[str, dict[str, float]]) -> str:
    """Table 6's layout: who ranks, and how well."""
    titles = {
        "plain": "base, the paper's prompt",
        "in_context": "base, in-context prompt",
        "tuned_a": "fine-tuned on source A",
        "tuned_b": "fine-tuned on source B",
        "blank": "fine-tuned on A, blank photos",
    }
    names = list(next(iter(rows.values())))
    lines = [f"{'ranker':<32}{'rank-1 of 5':>14}" + "".join(f"{name:>16}" for name in names)]
    for key, title in titles.items():
        values = found[key]
        said = f"{100 * statistics.fmean(values):.1f} ± {100 * (statistics.stdev(values) if values[1:] else 0):.1f}"
        accuracy = "".join(f"{100 * rows[key][name]:>16.1f}" for name in names) if key in rows else ""
        lines.append(f"{title:<32}{said:>14}{accuracy}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, default=Path("data"), help="where worlds are written (default: data)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/finetune-demo"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    work, held_out = args.work_dir, args.data / "demo_few_shot"
    make_few_shot_world(held_out, 0)
    minutes: list[float | None] = []
    adapters: dict[str, list[Path]] = {}
    for source in SOURCES:
        world = args.data / f"demo_{source.replace('-', '_')}"
        make_few_shot_world(world, 0, (5, 1, 1), classes=source)
        if not (work / source / "data" / "records.jsonl").is_file():
            run(
                *("finetune", "data", CONFIGS / "classification" / "demo.py", "--out", work / source / "data"),
                *(
                    "--device",
                    "cpu",
                    "--ask",
                    "likelihood",
                    "--prompt",
                    "paper",
                    "--cfg-options",
                    f"dataset.root={world}",
                ),
            )
        adapters[source] = []
        for seed in args.seeds:
            adapter, took = train(source, seed, work, args.device)
            adapters[source].append(adapter)
            minutes.append(took)
    found: dict[str, list[float]] = {key: [] for key in ("plain", "in_context", "tuned_a", "tuned_b", "blank")}
    for place, seed in enumerate(args.seeds):
        rows = questions(held_out, seed)
        found["plain"].append(rank_one(rows, "paper", args.device))
        found["in_context"].append(rank_one(rows, "paper_in_context", args.device))
        tuned_a = adapters["source-a"][place]
        found["tuned_a"].append(rank_one(rows, "paper", args.device, tuned_a))
        found["tuned_b"].append(rank_one(rows, "paper", args.device, adapters["source-b"][place]))
        found["blank"].append(rank_one(rows, "paper", args.device, tuned_a, is_blank=True))
    rows_of = {
        "plain": classify(work, "plain", None, "paper", args.device),
        "in_context": classify(work, "in_context", None, "paper_in_context", args.device),
        "tuned_a": classify(work, "tuned_a", adapters["source-a"][0], "paper", args.device),
        "tuned_b": classify(work, "tuned_b", adapters["source-b"][0], "paper", args.device),
    }
    means = {key: statistics.fmean(values) for key, values in found.items()}
    details = {
        "seeds": found,
        "classify": rows_of,
        "minutes_of_training": [took and round(took, 2) for took in minutes],
    }
    (work / "summary.json").write_text(json.dumps({**means, "details": details}, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(found, rows_of)}\n\nclasses of {HELD_OUT} photos are in no source; {work}/summary.json")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
