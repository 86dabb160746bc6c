"""What the two training scripts share: pools of rendered crops on disk, atomic files, resumable checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from world import WORLD_VERSION
from world_files import drawing_pool

SHARD = 1000  # crops per file: a killed run loses at most this many renders per worker
Renderer = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a neighbour of ``path`` and move it into place: after a kill ``path`` is whole or absent."""
    partial_path = path.with_name(f".{os.getpid()}.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(partial_path)
    os.replace(partial_path, path)


def _render_shard(folder: Path, entropy: tuple[int, ...], render: Renderer, shard: int) -> Path:
    path = folder / f"{shard:04d}.npz"
    if not path.exists():
        cv2.setNumThreads(1)
        rng = np.random.default_rng([*entropy, shard])
        pictures, labels = zip(*(render(rng) for _ in range(SHARD)), strict=True)

        def write(target: Path) -> None:
            with target.open("wb") as file:
                np.savez(file, pictures=np.stack(pictures), labels=np.stack(labels))

        write_atomically(path, write)
    return path


def rendered_pool(
    folder: Path, count: int, entropy: tuple[int, ...], render: Renderer, workers: int
) -> tuple[Tensor, Tensor]:
    """Render ``count`` labelled crops, or read those that an earlier run left behind.

    Args:
        folder: Where the shards live; its name should say what the pool is for.
        count: Crops wanted; rounded up to whole shards.
        entropy: Seeds of the pool; every shard adds its number, so pools with different entropy share no draw.
        render: Picklable function of a generator to one ``((S, S, 3) uint8 picture, label array)``.
        workers: Processes that render.

    Returns:
        Pictures (count, 3, S, S) uint8 RGB and labels (count, ...).
    """
    folder = folder / "-".join(map(str, (WORLD_VERSION, *entropy)))
    shards = range(-(-count // SHARD))
    job = partial(_render_shard, folder, entropy, render)
    if workers > 1:
        with drawing_pool(workers) as pool:
            paths = list(tqdm(pool.map(job, shards), total=len(shards), desc=f"render {folder.parent.name}", unit="k"))
    else:
        paths = [job(shard) for shard in tqdm(shards, desc=f"render {folder.parent.name}", unit="k")]
    pictures, labels = [], []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            pictures.append(torch.from_numpy(file["pictures"]).permute(0, 3, 1, 2).contiguous())
            labels.append(torch.from_numpy(file["labels"]))
    return torch.cat(pictures)[:count], torch.cat(labels)[:count]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state that ``load_checkpoint`` reads back; a kill during the write leaves the previous one."""
    write_atomically(path, lambda target: torch.save(state, target))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a training state (tensors and plain values only, never pickled code); ``None`` if there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, lambda target: target.write_text(json.dumps(value, indent=2) + "\n"))


def uniform_log(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from [low, high] with equal weight per octave."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
