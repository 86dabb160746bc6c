"""Augmented views of a photo, as FineR's evaluator averages them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from rar_mmdet.classification.vectors import Photo

__all__ = ["VIEWS", "augmented_views"]

VIEWS = 10  # FineR's N_tta, beside one plain view


def augmented_views(photo: Photo, size: int, count: int = VIEWS, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8 views: one of three crops, colour or sharpness, a flip, turn or tilt.

    Kinds and strengths are those of FineR's `tta` (data/utils.py), by torchvision. What is drawn depends on the seed
    and the photo's id alone; FineR's evaluator repeats these draws ten times and calls them ten runs.
    """
    digest = hashlib.sha256(f"{seed}/{photo.id}".encode()).digest()
    pixels = torch.from_numpy(photo.read()).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        transform = _transform(size)
        return torch.stack([transform(pixels) for _ in range(count)])


def _transform(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomChoice(
                [
                    v2.CenterCrop(size),
                    v2.RandomCrop(size, padding=16),
                    v2.RandomResizedCrop(size, (0.5, 1.0), antialias=True),
                ]
            ),
            v2.RandomChoice(
                [
                    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.5),
                    v2.RandomApply([v2.RandomAdjustSharpness(sharpness_factor=2)], p=0.5),
                ]
            ),
            v2.RandomChoice(
                [
                    v2.RandomApply([v2.RandomHorizontalFlip()], p=0.6),
                    v2.RandomApply([v2.RandomRotation(30)], p=0.6),
                    v2.RandomApply([v2.RandomPerspective()], p=0.6),
                ]
            ),
        ]
    )
