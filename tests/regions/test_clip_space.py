"""What the two backends cut is the same to the demo's encoder."""

from pathlib import Path

import numpy as np
import pytest
from skimage import data

from rar_mmdet.encoders import OpenClipEncoder
from rar_mmdet.regions import AreaScale, BlurBackground, RegionCropper

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights" / "clip"


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").is_file(), reason="the demo's encoder is not there")
def test_backends_agree_for_the_demo_encoder():
    encoder = OpenClipEncoder(model=f"local-dir:{WEIGHTS}", device="cpu")
    low = np.random.default_rng(0).uniform(-10, 400, (24, 2))
    sides = np.exp(np.random.default_rng(1).uniform(np.log(12), np.log(300), (24, 2)))
    boxes = np.concatenate([low, low + np.maximum(sides, 20)], axis=1)
    by_cpu, by_torch = (
        encoder.encode_images(
            RegionCropper(size=64, scale=AreaScale(), background=BlurBackground(3), backend=backend).crop(
                data.astronaut(), boxes
            )
        )
        for backend in ("cpu", "torch")
    )
    assert (by_cpu * by_torch).sum(dim=1).min() > 0.999
