"""FG-CLIP 2 as an encoder of crops and of boxes."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from fgclip2_world import GOLDEN, write_folder
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

from rar_mmdet.components import build_component
from rar_mmdet.encoders import FGCLIP2Encoder, FGCLIP2RegionEncoder, RegionEncoder
from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError
from rar_mmdet.testing import make_image

CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("fgclip2") / "model")


@pytest.fixture(scope="module")
def crops_of(folder):
    return FGCLIP2Encoder(model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def boxes_of(folder):
    return FGCLIP2RegionEncoder(model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")


class TestCrops:
    def test_sizes_come_from_the_config(self, crops_of):
        assert (crops_of.dim, crops_of.image_size) == (32, 64)
        assert crops_of.logit_scale == pytest.approx(np.exp(2.3), rel=1e-6)

    def test_crops_are_what_the_published_processor_makes_of_them(self, crops_of):
        from rar_mmdet.encoders.fgclip2 import prepare_images

        crops = torch.stack([torch.from_numpy(make_image(176, 176, seed)).permute(2, 0, 1) for seed in range(3)])
        inputs = prepare_images([crop.permute(1, 2, 0).numpy() for crop in crops])
        model = crops_of._ready()[0].model
        with torch.inference_mode():
            expected = F.normalize(model.get_image_features(**inputs), dim=1)
        torch.testing.assert_close(crops_of.encode_images(crops), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("size", [64, 100, 150], ids=str)
    def test_resized_crops_are_close_to_pils(self, crops_of, size):
        from rar_mmdet.encoders.fgclip2 import prepare_images

        crop = make_image(size, size, 7)
        found = crops_of._patches(torch.from_numpy(crop).permute(2, 0, 1)[None])
        expected = prepare_images([crop])
        assert found["spatial_shapes"].equal(expected["spatial_shapes"])
        own = found["pixel_values"].shape[1]
        # One grey level: PIL rounds to 8 bits after each axis.
        torch.testing.assert_close(found["pixel_values"], expected["pixel_values"][:, :own], atol=2.01 / 255, rtol=0)

    def test_batches_do_not_matter(self, folder, crops_of):
        crops = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        small = FGCLIP2Encoder(model=str(folder), device="cpu", batch_size=2)
        torch.testing.assert_close(small.encode_images(crops), crops_of.encode_images(crops), **CLOSE)
        texts = ["a red cup", "star", "the blue bow of a circle", "drink", "cup"]
        torch.testing.assert_close(small.encode_texts(texts), crops_of.encode_texts(texts), **CLOSE)

    def test_no_crops_and_no_texts(self, crops_of):
        assert crops_of.encode_images(torch.zeros((0, 3, 64, 64), dtype=torch.uint8)).shape == (0, 32)
        assert crops_of.encode_texts([]).shape == (0, 32)

    def test_texts_are_lower_case_and_padded(self, folder, crops_of):
        from rar_mmdet.encoders.fgclip2 import tokenize

        parts = crops_of._ready()[0]
        ids, _ = tokenize(parts.tokenizer, ["a red cup"], 64)
        with torch.inference_mode():
            expected = F.normalize(parts.model.get_text_features(ids), dim=1)
        torch.testing.assert_close(crops_of.encode_texts(["A Red CUP"]), expected, **CLOSE)

    def test_walks_differ_and_are_named_in_the_fingerprint(self, folder):
        encoders = [FGCLIP2Encoder(model=str(folder), device="cpu", walk=walk) for walk in ("short", "box", "long")]
        vectors = [encoder.encode_texts(["a red cup"]) for encoder in encoders]
        assert (vectors[0] - vectors[1]).abs().max() > 0.01
        assert (vectors[0] - vectors[2]).abs().max() > 0.01
        assert len({encoder.fingerprint for encoder in encoders}) == 3

    def test_long_texts_are_cut_and_told_of_once(self, folder, caplog):
        encoder = FGCLIP2Encoder(model=str(folder), device="cpu")
        with caplog.at_level(logging.WARNING):
            encoder.encode_texts(["cup " * 80])
            encoder.encode_texts(["cup " * 90])
        assert [record.message.count("exceed 64 tokens") for record in caplog.records] == [1]

    def test_half_precision_is_close(self, folder, crops_of):
        half = FGCLIP2Encoder(model=str(folder), device="cpu", precision="bf16")
        crops = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert (half.encode_images(crops) * crops_of.encode_images(crops)).sum(1).min() > 0.999
        assert half.fingerprint != crops_of.fingerprint

    def test_copies_and_pickles_as_its_arguments(self, crops_of):
        crops_of.load("cpu")
        for other in (copy.deepcopy(crops_of), pickle.loads(pickle.dumps(crops_of))):
            assert other._model is None
            assert other.fingerprint == crops_of.fingerprint


class TestRegions:
    def test_golden(self, folder, golden):
        inputs, outputs = golden
        encoder = FGCLIP2RegionEncoder(model=str(folder), device="cpu", max_patches=24)
        found = [encoder.encode_regions(inputs[f"image_{i}"].numpy(), inputs[f"boxes_{i}"]) for i in range(4)]
        torch.testing.assert_close(torch.cat(found), outputs["roi_features"], **CLOSE)

    def test_is_a_region_encoder(self, crops_of, boxes_of):
        assert isinstance(boxes_of, RegionEncoder)
        assert not isinstance(crops_of, RegionEncoder)
        assert boxes_of.fingerprint != crops_of.fingerprint
        assert boxes_of.logit_scale == 100

    def test_a_crop_is_a_photo_with_one_box_at_the_published_budget_too(self, boxes_of):
        crop = make_image(176, 176, 5)
        found = boxes_of.encode_images(torch.from_numpy(crop).permute(2, 0, 1)[None])
        torch.testing.assert_close(found, boxes_of.encode_regions(crop, [[0, 0, 176, 176]]), **CLOSE)


class TestLoading:
    def test_from_a_config(self, folder):
        encoder = build_component({"type": "FGCLIP2RegionEncoder", "model": str(folder), "max_patches": 64}, "encoder")
        assert encoder.max_patches == 64

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            pytest.param({"walk": "tall"}, "walk must be", id="walk"),
            pytest.param({"precision": "int8"}, "precision must be", id="precision"),
            pytest.param({"batch_size": 0}, "batch_size must be", id="batch"),
            pytest.param({"image_size": 0}, "image_size must be", id="size"),
            pytest.param({"max_patches": 0}, "max_patches must be", id="patches"),
        ],
    )
    def test_values_of_no_use_are_refused(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            FGCLIP2RegionEncoder(model="x", **arguments)

    def test_missing_files_are_listed(self, folder, tmp_path):
        assert FGCLIP2Encoder(model=str(folder)).missing_assets() == []
        assert "hf download qihoo360/none" in FGCLIP2Encoder(model="qihoo360/none").missing_assets()[0]
        write_folder(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        encoder = FGCLIP2Encoder(model=str(tmp_path))
        with pytest.raises(MissingAssetError, match="no tokenizer"):
            encoder.load("cpu")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param({"model_type": "clip", "architectures": ["FGCLIPModel"]}, "holds FG-CLIP 1", id="fgclip1"),
            pytest.param({"model_type": "siglip2"}, "holds model_type 'siglip2'", id="siglip2"),
        ],
    )
    def test_other_models_are_refused_by_name(self, tmp_path, content, message):
        write_folder(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(EncoderLoadError, match=message):
            FGCLIP2Encoder(model=str(tmp_path)).load("cpu")

    def test_a_damaged_file_is_named(self, tmp_path):
        write_folder(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(EncoderLoadError, match="Download it again"):
            FGCLIP2Encoder(model=str(tmp_path)).load("cpu")

    def test_weights_that_are_not_finite_are_named(self, tmp_path):
        write_folder(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        state["logit_bias"][0] = float("nan")
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EncoderLoadError, match="not finite: logit_bias"):
            FGCLIP2Encoder(model=str(tmp_path)).load("cpu")

    def test_a_tokenizer_of_another_model_is_refused(self, tmp_path):
        write_folder(tmp_path)
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        content["model"]["vocab"] |= {f"word{i}": 20 + i for i in range(400)}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(EncoderLoadError, match="the text tower knows 300 tokens"):
            FGCLIP2Encoder(model=str(tmp_path)).load("cpu")
