"""Where built memories are kept, and parts of builds that were stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["compute_or_resume", "default_cache_dir"]

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Where memories are kept: `RAR_MMDET_CACHE`, else `~/.cache/rar_mmdet`; then `memory`."""
    return Path(os.environ.get("RAR_MMDET_CACHE") or "~/.cache/rar_mmdet").expanduser() / "memory"


def compute_or_resume(parts_dir: Path | None, key: Any, count: int, compute: Callable[[], Tensor]) -> Tensor:
    """`compute()`, or its result from an earlier run that was stopped.

    Args:
        parts_dir: folder of results; `None` keeps none.
        key: what the result depends on, as JSON.
        count: rows of the result.
        compute: makes (count, D) vectors.
    """
    if parts_dir is None:
        return compute()
    path = parts_dir / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        try:
            vectors = load_file(str(path))["vectors"]
            if len(vectors) == count:
                return vectors
        except (SafetensorError, KeyError, OSError, RuntimeError) as error:
            logger.warning("a part of an earlier build is not readable (%s); made anew", error)
    vectors = compute()
    try:
        parts_dir.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"vectors": vectors.contiguous()}, str(fresh))
        os.replace(fresh, path)
    except (OSError, SafetensorError) as error:  # a full disk must not end a build that could go on without
        logger.warning("a part of this build cannot be kept in %s (%s)", parts_dir, error)
    return vectors
