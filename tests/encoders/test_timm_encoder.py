"""Models of timm against timm's own loading and preprocessing, and what is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models._hub import save_for_hf
from torch.nn import functional as F  # noqa: N812

from rar_mmdet.components import build_component
from rar_mmdet.encoders import TimmEncoder
from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError

SIZE = 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DINOv2 of random weights and two blocks, saved as timm publishes models, its classifier with it."""
    torch.manual_seed(0)
    small = {"img_size": SIZE, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 7}
    model = timm.create_model("vit_small_patch14_dinov2", **small)
    where = tmp_path_factory.mktemp("timm") / "dinov2"
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, SIZE, SIZE)}
    save_for_hf(model, where, model_args=small, safe_serialization=True)
    return where


@pytest.fixture(scope="module")
def photographs():
    """Two crops of photographs, of the model's size."""
    photos = (skimage.data.astronaut(), skimage.data.coffee())
    return [Image.fromarray(photo[:256, 100:356]).resize((SIZE, SIZE)) for photo in photos]


def tensor_of(photographs):
    return torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in photographs]).view(
        -1, SIZE, SIZE, 3
    ).permute(0, 3, 1, 2)  # fmt: skip


@torch.inference_mode()
def test_images_equal_timms_own(folder, photographs):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    settings = resolve_data_config(model=model) | {"crop_pct": 1.0}
    transform = create_transform(**settings, is_training=False)
    expected = F.normalize(model(torch.stack([transform(photo) for photo in photographs])), dim=1)
    encoder = TimmEncoder(model=str(folder), device="cpu", batch_size=1)
    found = encoder.encode_images(tensor_of(photographs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.shape == (2, encoder.dim) == (2, 24)
    assert encoder.image_size == SIZE
    assert encoder.encode_images(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8)).shape == (0, 24)
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again.encode_images(tensor_of(photographs)), found)
    assert again.fingerprint == encoder.fingerprint


def test_it_is_built_by_name_and_has_no_texts(folder):
    encoder = build_component({"type": "TimmEncoder", "model": str(folder)}, "vision_encoder")
    assert isinstance(encoder, TimmEncoder)
    with pytest.raises(ConfigError, match="it has no text tower; use a memory of exemplars"):
        encoder.encode_texts(["a cat"])


def test_what_is_missing_or_wrong_is_named(folder, tmp_path):
    with pytest.raises(MissingAssetError, match="hf download timm/vit_base_patch14_dinov2.lvd142m"):
        TimmEncoder(model="timm/vit_base_patch14_dinov2.lvd142m").load()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "clip"}')
    save_file({"a": torch.zeros(1)}, broken / "model.safetensors")
    with pytest.raises(EncoderLoadError, match="names no `architecture`: it is no model of timm"):
        TimmEncoder(model=str(broken)).load()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(EncoderLoadError, match="the weights lack, or have in another shape: cls_token, pos_embed"):
        TimmEncoder(model=str(broken)).load()
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "pos_embed": torch.zeros(1, 2, 3)}, broken / "model.safetensors")
    with pytest.raises(
        EncoderLoadError, match="(?s)could not be loaded as timm's vit_small_patch14_dinov2: .*pos_embed"
    ):
        TimmEncoder(model=str(broken)).load()
    save_file({**weights, "norm.bias": weights["norm.bias"] * torch.nan}, broken / "model.safetensors")
    with pytest.raises(EncoderLoadError, match="not finite: norm.bias"):
        TimmEncoder(model=str(broken)).load()
    (broken / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(EncoderLoadError, match="is damaged: .* Download it again"):
        TimmEncoder(model=str(broken)).load()
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 28, 42]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderLoadError, match="takes images of 28 x 42, not squares"):
        _ = TimmEncoder(model=str(broken)).image_size
