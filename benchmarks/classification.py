"""Few-shot classifiers on stored vectors, against the plain way to write them; ratios within one run.

    python benchmarks/classification.py [--json FILE] [--threads 2] [--quick]

Random vectors of ImageNet's size: 50,000 queries, 1,000 classes, 512 channels, 16 exemplars each.

- `gda_speedup`: `fit_gda` over a float64 loop over classes and a pseudo-inverse of the full matrix.
- `tip_speedup`: `tip_logits` over the (Q, N) matrix of exponentials, made in place, times the (N, C) matrix of zeros
  and ones. Both speed-ups are the median ratio of runs that take turns, for Tip-Adapter on 12,000 of the queries: a
  neighbour on the machine slows both. `..._cpu` are the same of CPU seconds.
- `tip_memory_ratio` (ours / its): all queries, each in a process of its own; the peak above what the process held
  before the call, result included.
- `rows_s`, `rows_peak_mib`: every retrieval row once: text, nearest image, class means, text and means mixed,
  Tip-Adapter, GDA, each down to its predictions; the peak of the whole process, vectors included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from rar_mmdet.memory.few_shot import fit_gda, gda_logits, nearest_labels, tip_keys, tip_logits

QUERIES, CLASSES, CHANNELS, SHOTS = 50_000, 1_000, 512, 16
QUICK = (2_000, 100, 128, 16)
TURNS, TURN_QUERIES = 3, 12_000
ALPHA, BETA = 1.0, 5.5  # values in common use; speed does not depend on them


@dataclass(frozen=True)
class World:
    """Stored vectors of a few-shot run."""

    queries: Tensor  # (Q, D)
    truth: Tensor  # (Q,)
    exemplars: Tensor  # (N, D)
    labels: Tensor  # (N,)
    text: Tensor  # (D, C)


def make_world(num_queries: int, classes: int, channels: int, shots: int) -> World:
    """Class centres plus noise of the same length, all unit; the exemplars stand in random order."""
    generator = torch.Generator().manual_seed(0)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, channels, generator=generator)

    centres = noise(classes)
    truth = torch.randint(0, classes, (num_queries,), generator=generator)
    labels = torch.arange(classes * shots)[torch.randperm(classes * shots, generator=generator)] % classes
    unit = [normalize(centres[ids] + 2.5 * noise(len(ids)), dim=1) for ids in (truth, labels)]
    text = normalize(centres + 3 * noise(classes), dim=1).T.contiguous()
    return World(unit[0], truth, unit[1], labels, text)


def loop_gda(world: World) -> Tensor:
    """Weights by a float64 loop over classes and a pseudo-inverse of the full matrix."""
    features, classes = world.exemplars.double(), world.text.shape[1]
    channels, num = features.shape[1], len(features)
    means = torch.empty(classes, channels, dtype=torch.float64)
    scatter = torch.zeros(channels, channels, dtype=torch.float64)
    for label in range(classes):
        own = features[world.labels == label]
        means[label] = own.mean(dim=0)
        scatter += (own - means[label]).T @ (own - means[label])
    shrunk = scatter + scatter.trace() / (num - 1) * torch.eye(channels, dtype=torch.float64)
    return channels * torch.linalg.pinv(shrunk) @ means.T


def dense_tip(world: World) -> Tensor:
    """All exponentials at once, in place, and a product with the one-hot labels."""
    close = (world.queries @ world.exemplars.T).sub_(1).mul_(BETA).exp_()
    cache = close @ one_hot(world.labels, world.text.shape[1]).to(close.dtype)
    return 100 * world.queries @ world.text + ALPHA * cache


def our_tip(world: World) -> Tensor:
    return tip_logits(world.queries, world.exemplars, world.labels, world.text, ALPHA, BETA)


def our_gda(world: World) -> Tensor:
    return fit_gda(world.exemplars, world.labels, world.text.shape[1]).weight


def all_rows(world: World) -> Tensor:
    """(6,) accuracies: every retrieval row once, fitting included."""
    classes = world.text.shape[1]
    keys = tip_keys(world.exemplars[None])
    gda = fit_gda(world.exemplars, world.labels, classes)
    means = normalize(gda.means, dim=1).T
    rows: dict[str, Callable[[], Tensor]] = {
        "text": lambda: (world.queries @ world.text).argmax(dim=1),
        "knn": lambda: nearest_labels(world.queries, world.exemplars, world.labels, 1)[:, 0],
        "mean": lambda: (world.queries @ means).argmax(dim=1),
        "mix": lambda: (world.queries @ (world.text + means)).argmax(dim=1),
        "tip": lambda: tip_logits(world.queries, keys, world.labels, world.text, ALPHA, BETA).argmax(dim=1),
        "gda": lambda: gda_logits(world.queries, world.text, gda, 1e-2).argmax(dim=1),
    }
    return torch.stack([(row() == world.truth).double().mean() for row in rows.values()])


WAYS: dict[str, Callable[[World], Tensor]] = {
    "gda": our_gda,
    "gda loop": loop_gda,
    "tip": our_tip,
    "tip dense": dense_tip,
    "rows": all_rows,
}


def take_turns(world: World, ours: str, other: str) -> dict[str, Any]:
    """Median ratios of seconds and of CPU seconds, other / ours, of runs that take turns."""
    ratios: dict[str, list[float]] = {"speedup": [], "speedup_cpu": []}
    for turn in range(TURNS + 1):
        took = []
        for name in (ours, other):
            wall, cpu = time.perf_counter(), time.process_time()
            result = WAYS[name](world)
            took.append((time.perf_counter() - wall, time.process_time() - cpu))
            if name == ours:
                expected = result
        if turn == 0:  # threads start; the results agree
            if (result - expected).abs().max() > 1e-4 * expected.abs().max():
                raise RuntimeError(f"{ours} and {other} differ")
            continue
        for key, first, second in zip(ratios, *took, strict=True):
            ratios[key].append(second / first)
    return {key: statistics.median(values) for key, values in ratios.items()}


def work(name: str, size: Sequence[int], threads: int) -> None:
    """The body of one process: run a way, or two in turns, and print the figures."""
    torch.set_num_threads(threads)
    world = make_world(*size)
    if "/" in name:
        few = replace(world, queries=world.queries[:TURN_QUERIES], truth=world.truth[:TURN_QUERIES])
        print(json.dumps(take_turns(few, *name.split("/"))))
        return
    WAYS[name](make_world(64, 8, size[2], 2))  # threads and libraries start on a small world
    _reset_peak()
    base, wall, cpu = _status_mib("VmRSS"), time.perf_counter(), time.process_time()
    result = WAYS[name](world)
    figures: dict[str, Any] = {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    peak = _status_mib("VmHWM")
    figures |= {"extra_mib": peak - base, "peak_mib": peak}
    if name == "rows":
        figures["accuracy"] = result.tolist()
    print(json.dumps(figures))


def measure(name: str, size: Sequence[int], threads: int) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--threads", str(threads), "--size", *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items() if key != "accuracy"))
    return numbers


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark measures memory on Linux")


def _reset_peak() -> None:
    """Peak memory from now on (Linux: proc(5), clear_refs); where not allowed, making the vectors counts as well."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"peak memory cannot be reset ({error}); it includes making the vectors", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every way, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="a small world; ratios mean little")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return work(args.worker, args.size, args.threads)
    size = QUICK if args.quick else (QUERIES, CLASSES, CHANNELS, SHOTS)
    print(f"torch {torch.__version__}, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    print("{} queries, {} classes, {} channels, {} shots".format(*size))
    gda, tip = (measure(pair, size, args.threads) for pair in ("gda/gda loop", "tip/tip dense"))
    memory = [measure(name, size, args.threads)["extra_mib"] for name in ("tip", "tip dense")]
    rows = measure("rows", size, args.threads)
    figures = {
        "gda_speedup": gda["speedup"],
        "gda_speedup_cpu": gda["speedup_cpu"],
        "tip_speedup": tip["speedup"],
        "tip_speedup_cpu": tip["speedup_cpu"],
        "tip_memory_ratio": memory[0] / memory[1],
        "rows_s": rows["s"],
        "rows_cpu_s": rows["cpu_s"],
        "rows_peak_mib": rows["peak_mib"],
    }
    print("accuracy of text, knn, mean, mix, tip, gda: " + ", ".join(f"{value:.1%}" for value in rows["accuracy"]))
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
