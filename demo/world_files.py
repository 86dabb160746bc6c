"""What both world makers share: JPEG files, processes that draw, and folders that are whole or not there at all."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

MANIFEST = "world.json"


def write_jpeg(path: Path, photo: np.ndarray) -> bytes:
    """Write (H, W, 3) uint8 RGB at quality 92; returns the bytes of the file."""
    ok, data = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert ok
    path.write_bytes(data.tobytes())
    return data.tobytes()


def drawing_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that draw. Forked, a child of a process that used OpenCV or torch waits for ever for their threads."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def read_manifest(root: Path) -> dict[str, Any]:
    """What a world says of itself; empty where there is none that can be read."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


@contextmanager
def new_world(out: Path, world: str, kind: str) -> Iterator[Path]:
    """An empty folder beside ``out`` to build a world in, moved there when the block ends well.

    A killed run therefore leaves no half world, and an older world of the same sort at ``out`` is replaced.

    Args:
        out: Where the world goes.
        world: What its manifest has under "world"; another world is never replaced.
        kind: What people call it.

    Raises:
        FileExistsError: ``out`` holds something else.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and read_manifest(out).get("world") != world:
        raise FileExistsError(
            f"{out} is not empty and holds no {kind}: give another folder with --out, or empty this one"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        root = Path(scratch) / "world"
        root.mkdir()
        yield root
        if out.exists():
            out.rename(Path(scratch) / "old")
        shutil.move(root, out)
