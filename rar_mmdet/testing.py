"""Small deterministic stand-ins for encoder and memory, and builders of test data; for our and for users' tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.rankers import Ranker
from rar_mmdet.structures import Ranking, RankStatus, Shortlist

__all__ = ["FakeEncoder", "FakeMemory", "FakeRanker", "make_boxes", "make_image", "make_shortlist"]


class FakeEncoder:
    """Unit vectors by a fixed random projection of the crop averaged to 4x4; equal crops give equal vectors."""

    def __init__(self, *, dim: int = 16, image_size: int = 32, seed: int = 0) -> None:
        self.dim, self.image_size, self.logit_scale = dim, image_size, 20.0
        self.fingerprint = f"fake-{dim}-{seed}"
        self._projection = torch.randn(48, dim, generator=torch.Generator().manual_seed(seed))

    def missing_assets(self) -> list[str]:
        """Nothing to download."""
        return []

    def load(self, device: torch.device | str | None = None) -> None:
        """Nothing to load."""

    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 -> (R, D) float32 unit vectors."""
        pooled = torch.nn.functional.adaptive_avg_pool2d(crops.float() / 255 - 0.5, 4).flatten(1)
        return torch.nn.functional.normalize(pooled @ self._projection + 1e-3, dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, D) float32 unit vectors; each depends on the characters of its text alone."""
        rows = [
            torch.randn(
                self.dim, generator=torch.Generator().manual_seed(sum((i + 1) * ord(c) for i, c in enumerate(t)))
            )
            for t in texts
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, self.dim)


class FakeMemory:
    """Exact search over given unit vectors, written as plainly as possible: an oracle for real memories."""

    def __init__(self, *, vectors: Tensor, temperature: float = 0.05) -> None:
        self.vectors, self.temperature = vectors, temperature
        self.num_categories = len(vectors)

    def prepare(self, encoder: Any, category_names: Sequence[str]) -> FakeMemory:
        """This memory."""
        return self

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable categories of each query."""
        probs = torch.softmax(queries @ self.vectors.T / self.temperature, dim=1)
        best = probs.sort(dim=1, descending=True, stable=True)
        return Shortlist(best.indices[:, :depth], best.values[:, :depth])


class FakeRanker(Ranker):
    """Log-probabilities from the crop and the candidates alone, so that batches and processes do not matter."""

    def __init__(self, *, crop_size: int = 24) -> None:
        self.crop_size = crop_size
        self.num_asked = 0

    def rank(self, crops: Tensor, shortlist: Shortlist, category_names: Sequence[str]) -> Ranking:
        """Prefer candidates by a fixed mixture of the crop's mean colour and the category id."""
        colour = crops.float().mean(dim=(1, 2, 3))[:, None] / 16
        log_probs = torch.log_softmax(torch.sin(colour + shortlist.category_ids.float()) * 3, dim=1)
        order = log_probs.argsort(dim=1, descending=True, stable=True)
        self.num_asked += len(shortlist)
        return Ranking(order, log_probs, torch.full((len(shortlist),), int(RankStatus.OK)))

    def report(self) -> dict[str, Any]:
        """Regions asked about."""
        return {"asked": self.num_asked}


def make_image(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: smooth random colours, so that neighbouring crops differ but not wildly."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (height // 10 + 2, width // 10 + 2, 3))
    rows = np.linspace(0, coarse.shape[0] - 1.001, height)
    cols = np.linspace(0, coarse.shape[1] - 1.001, width)
    r, c = rows.astype(int), cols.astype(int)
    fr, fc = (rows - r)[:, None, None], (cols - c)[None, :, None]
    top = coarse[r][:, c] * (1 - fc) + coarse[r][:, c + 1] * fc
    bottom = coarse[r + 1][:, c] * (1 - fc) + coarse[r + 1][:, c + 1] * fc
    return (top * (1 - fr) + bottom * fr).round().astype(np.uint8)


def make_boxes(num: int, height: int = 60, width: int = 80, seed: int = 0) -> Tensor:
    """(num, 4) float32 xyxy boxes inside an image of that size, at least 4 px wide and high."""
    rng = np.random.default_rng(seed)
    x1, y1 = rng.uniform(0, width - 5, num), rng.uniform(0, height - 5, num)
    x2, y2 = x1 + 4 + rng.uniform(0, 1, num) * (width - x1 - 4), y1 + 4 + rng.uniform(0, 1, num) * (height - y1 - 4)
    return torch.tensor(np.stack([x1, y1, x2, y2], axis=1).reshape(num, 4), dtype=torch.float32)


def make_shortlist(num_regions: int, depth: int, num_categories: int | None = None, seed: int = 0) -> Shortlist:
    """A random shortlist: probabilities of a softmax over `num_categories`, cut to the best `depth`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_regions, num_categories or depth, generator=generator) * 2
    best = torch.softmax(logits, dim=1).sort(dim=1, descending=True, stable=True)
    return Shortlist(best.indices[:, :depth].clone(), best.values[:, :depth].clone())
