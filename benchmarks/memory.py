"""The memory against one matrix product, and approximate indexes against exact search; ratios within one run.

    python benchmarks/memory.py [--json FILE] [--threads 2] [--quick]

Small case: 13,204 x 512, 1,000 queries, N = 300, probabilities included. Baseline: one fp32 matrix product,
`logsumexp` and `topk` in torch. `exact_overhead` is the worse of a memory and of its `FaissSearch` with `Flat` over it.

Large case: 200,000 x 512 exemplars of 13,204 categories, max over entries. How made: coordinates are Gaussian with
variance falling as 1/i (CLIP's spectra fall about so); category centres are unit vectors of that law; an exemplar, and
a query, is the unit vector of its centre plus 0.6 of another such draw. Recall@5: share of the exact best five
categories among the approximate best five. Speed-ups are over our exact torch search of the same queries.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SMALL = (13_204, 512, 1000, 300)  # V3Det's categories, CLIP B/16's dimension, queries, N


def main(argv: Sequence[str] | None = None) -> None:
    """Run both cases and print them; write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="20,000 exemplars instead of 200,000")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import faiss
    import torch

    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, FAISS {faiss.__version__}, {args.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    figures = {**exact_search(), **loading(), **approximate_search(20_000 if args.quick else 200_000)}
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def exact_search() -> dict[str, float]:
    """Both exact backends over the baseline, runs interleaved, medians."""
    import torch

    from rar_mmdet.memory import CategoryMemory, FaissSearch

    categories, dim, num_queries, depth = SMALL
    entries, names, info = _text_like(categories, dim)
    queries = _unit(num_queries, dim, seed=1)
    torch_memory = CategoryMemory(entries, names, info=info)
    flat_memory = FaissSearch(torch_memory, "Flat")

    def baseline() -> object:
        scores = queries @ entries.vectors.T
        best = scores.topk(depth, dim=1)
        return best.indices, (best.values - scores.logsumexp(dim=1, keepdim=True)).exp()

    seconds = _interleaved(
        {
            "baseline": baseline,
            "torch": lambda: torch_memory.search(queries, depth),
            "flat": lambda: flat_memory.search(queries, depth),
        },
        rounds=7,
    )
    ratios = {name: seconds[name] / seconds["baseline"] for name in ("torch", "flat")}
    print(f"exact, {categories} x {dim}, {num_queries} queries, N={depth}: baseline {seconds['baseline'] * 1e3:.0f} ms")
    print(f"  torch {ratios['torch']:.2f}x, FAISS Flat {ratios['flat']:.2f}x of it")
    assert torch.equal(torch_memory.search(queries, 5).category_ids, flat_memory.search(queries, 5).category_ids)
    return {"exact_overhead": max(ratios.values()), "exact_torch": ratios["torch"], "exact_flat": ratios["flat"]}


def loading() -> dict[str, float]:
    """Time to open a memory of V3Det's size, hashes checked."""
    from rar_mmdet.memory import CategoryMemory, load_memory, save_memory

    entries, names, info = _text_like(SMALL[0], SMALL[1])
    with tempfile.TemporaryDirectory() as folder:
        save_memory(CategoryMemory(entries, names, info=info), Path(folder) / "m")
        seconds = _interleaved({"load": lambda: load_memory(Path(folder) / "m")}, rounds=5)["load"]
    print(f"loading {SMALL[0]} x {SMALL[1]}, every file's hash checked: {seconds:.3f} s")
    return {"load_s": seconds}


def approximate_search(num_entries: int) -> dict[str, float]:
    """HNSW and reduced dimension + HNSW against exact search."""
    import torch

    from rar_mmdet.memory import CategoryMemory, Entries, EntryKind, FaissSearch, IndexSpec, MemoryInfo

    categories, dim, num_queries, _ = SMALL
    ids = torch.arange(num_entries) * categories // num_entries
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, dim + 1) ** -0.5

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, dim, generator=generator) * (spectrum / spectrum.norm())

    centres = torch.nn.functional.normalize(draw(categories), dim=1)
    vectors = torch.nn.functional.normalize(centres[ids] + 0.6 * draw(num_entries), dim=1)
    asked = torch.randint(0, categories, (num_queries,), generator=generator)
    queries = torch.nn.functional.normalize(centres[asked] + 0.6 * draw(num_queries), dim=1)
    entries = Entries(vectors, ids, torch.full((num_entries,), int(EntryKind.IMAGE)), [""] * num_entries)
    info = MemoryInfo(encoder="benchmark@0", logit_scale=100.0)
    names = [str(i) for i in range(categories)]
    exact = CategoryMemory(entries, names, info=info)
    print(f"approximate, {num_entries} exemplars of {categories} categories, best 5 of {num_queries} queries")
    specs = {
        "hnsw": IndexSpec("HNSW32", ef_search=256, ef_construction=80, survivors=100),
        "pca": IndexSpec("PCA64,HNSW32", ef_search=256, ef_construction=80, survivors=100),
    }
    found, runs = {}, {"exact": lambda: exact.search(queries, 5)}
    for name, spec in specs.items():
        started = time.perf_counter()
        memory = FaissSearch(exact, spec)
        _print_build(name, spec.factory, memory, time.perf_counter() - started, num_entries)
        found[name] = memory.search(queries, 5)
        runs[name] = lambda memory=memory: memory.search(queries, 5)
    seconds = _interleaved(runs, rounds=3)
    truth = exact.search(queries, 5)
    print(f"  exact: {seconds['exact'] / num_queries * 1e3:.2f} ms per query")
    figures = {}
    for name in specs:
        same = (found[name].category_ids[:, :, None] == truth.category_ids[:, None]).any(dim=2)
        error = (found[name].probs[:, 0] / truth.probs[:, 0] - 1).abs()
        figures[f"{name}_recall5"] = float(same.float().mean())
        figures[f"{name}_speedup"] = seconds["exact"] / seconds[name]
        print(
            f"  {name}: recall@5 {figures[f'{name}_recall5']:.4f}, {figures[f'{name}_speedup']:.1f}x, "
            f"best probability off by {error.mean():.2%} on average, {error.max():.1%} at most"
        )
    return figures


def _print_build(name: str, factory: str, memory: object, seconds: float, num_entries: int) -> None:
    import faiss

    size = len(faiss.serialize_index(memory.index)) / num_entries  # type: ignore[attr-defined]
    vectors = 4 * SMALL[1] + 9  # float32, category id, kind
    line = f"  {name} ({factory}): built in {seconds:.0f} s, {size:.0f} B of index + {vectors} B of vectors per entry"
    for count in (10**6, 10**7):
        gib, minutes = (size + vectors) * count / 2**30, seconds * count / num_entries / 60
        line += f"; {count:.0e}: {gib:.1f} GiB, about {minutes:.0f} min to build"
    print(line)


def _text_like(categories: int, dim: int) -> tuple:
    import torch

    from rar_mmdet.memory import Entries, EntryKind, MemoryInfo

    names = [f"category {i}" for i in range(categories)]
    entries = Entries.sorted(_unit(categories, dim), torch.arange(categories), EntryKind.TEXT, names)
    return entries, names, MemoryInfo(encoder="benchmark@0", logit_scale=100.0)


def _unit(rows: int, dim: int, seed: int = 0):
    import torch

    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def _interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each; every round runs all of them, so that a busy machine hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if index:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
