"""Photos and texts as FG-CLIP 2 was trained to see them: a budget of patches, and texts padded to a fixed length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["grid_of", "patch_budget", "prepare_images", "tokenize"]

# The authors' rule for a photo of n whole patches: the first budget whose bound n exceeds, else the smallest. So that a
# photo is rarely made much smaller, and a small one is enlarged.
BUDGETS = ((784, 1024), (576, 784), (256, 576), (128, 256), (0, 128))
_SMALLEST, _LARGEST, _STEP = 1e-6, 100.0, 1e-5  # of the search for a scale, as in SigLIP 2's processor


def patch_budget(image_hw: tuple[int, int], patch_size: int = 16) -> int:
    """How many patches a photo of that size may become. The model card's default of 256 loses small objects."""
    patches = (image_hw[0] // patch_size) * (image_hw[1] // patch_size)
    return next((budget for bound, budget in BUDGETS if patches > bound), BUDGETS[-1][1])


def grid_of(image_hw: tuple[int, int], budget: int, patch_size: int = 16) -> tuple[int, int]:
    """Rows and columns of patches of a photo: the largest scale whose sides, rounded up to patches, stay in budget."""

    def grid_at(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in image_hw)
        return rows, columns

    low, high = _SMALLEST, _LARGEST
    while high - low >= _STEP:
        middle = (low + high) / 2
        rows, columns = grid_at(middle)
        low, high = (middle, high) if rows * columns <= budget else (low, middle)
    return grid_at(low)


def prepare_images(
    images: Sequence[NDArray[np.uint8]], patch_size: int = 16, max_num_patches: int | None = None
) -> dict[str, Tensor]:
    """Photos as the vision tower takes them.

    Args:
        images: B (H, W, 3) uint8 RGB arrays.
        patch_size: P, side of a patch in pixels.
        max_num_patches: the budget of every photo; `None`: the authors' rule for each photo by itself. (Their own
            processor takes the budget of the largest photo of a batch, so that vectors depend on the company.)

    Returns:
        `pixel_values` (B, L, 3 P P) float32 in [-1, 1], `pixel_attention_mask` (B, L) int32 and `spatial_shapes`
        (B, 2) int64; L is the largest budget of the batch.
    """
    budgets = [max_num_patches or patch_budget(image.shape[:2], patch_size) for image in images]
    length = max(budgets, default=0)
    pixels = torch.zeros((len(images), length, 3 * patch_size**2))
    mask = torch.zeros((len(images), length), dtype=torch.int32)
    shapes = torch.zeros((len(images), 2), dtype=torch.int64)
    for row, (image, budget) in enumerate(zip(images, budgets, strict=True)):
        rows, columns = grid_of(image.shape[:2], budget, patch_size)
        patches = _patches(image, rows, columns, patch_size)
        pixels[row, : len(patches)], mask[row, : len(patches)] = patches, 1
        shapes[row] = torch.tensor([rows, columns])
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _patches(image: NDArray[np.uint8], rows: int, columns: int, patch_size: int) -> Tensor:
    """(rows x columns, 3 P P): patches row by row, inside a patch row, column, channel."""
    size = (columns * patch_size, rows * patch_size)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    # In this order, because the result is then bit-equal to the published processor's.
    values = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    values = (values - np.float32(0.5)) / np.float32(0.5)
    cells = values.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(np.ascontiguousarray(cells)).reshape(rows * columns, -1)


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[Tensor, int]:
    """Texts as the text tower takes them: lower case, no start token, an end token, padded on the right.

    The special tokens are set here and not left to the tokenizer's settings, which other releases of transformers read
    otherwise.

    Args:
        tokenizer: of transformers, with `eos_token_id` and `pad_token_id`.
        texts: N texts.
        length: T; longer texts are cut and keep their end token.

    Returns:
        (N, T) int64 ids, and how many texts were cut.
    """
    ids = torch.full((len(texts), length), int(tokenizer.pad_token_id), dtype=torch.int64)
    cut = 0
    found = tokenizer([text.lower() for text in texts], add_special_tokens=False).input_ids if texts else []
    for row, own in enumerate(found):
        cut += len(own) >= length
        tokens = [*own[: length - 1], int(tokenizer.eos_token_id)]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids, cut
