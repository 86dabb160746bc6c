"""Folders that are not, or not wholly, this model: each is named before it can answer anything."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from rar_mmdet.errors import HostError, MissingAssetError, RankerLoadError
from rar_mmdet.rankers.internlm_xc2 import IXC2ForConditionalGeneration
from rar_mmdet.rankers.internlm_xc2.checkpoint import MANIFEST, file_sha256, weight_files

load = AutoModelForImageTextToText.from_pretrained
SHARD = "pytorch_model-00001-of-00002.bin"


class TestPublishedLayout:
    def test_bin_shards_load(self, published_folder):
        model = load(published_folder)
        state = {}
        for path in weight_files(published_folder):
            state |= torch.load(path, weights_only=True)
        for name, parameter in model.named_parameters():
            assert parameter.equal(state[name.replace(".base.", ".")]), name

    def test_what_the_file_says_of_generation_is_not_honoured(self, published_folder):
        model = load(published_folder)
        assert model.config.use_cache
        assert model.generation_config.use_cache
        assert model.generation_config.max_length != 64
        assert model.generation_config.eos_token_id == [2, 3]  # end of text and of turn

    def test_pickles_are_refused(self, published_folder, copy_of):
        folder = copy_of(published_folder)
        torch.save({"model.norm.weight": torch.nn.Linear(1, 1)}, folder / SHARD)
        with pytest.raises(Exception, match="[Ww]eights.only"):
            load(folder)

    def test_dtype(self, published_folder):
        assert load(published_folder, dtype="bfloat16").dtype == torch.bfloat16


class TestKeys:
    def test_missing(self, golden_folder, copy_of, rewrite_weights):
        folder = copy_of(golden_folder)
        rewrite_weights(folder, lambda s: s.pop("model.layers.1.attention.wo.Plora_B.weight"))
        with pytest.raises(RankerLoadError, match=r"1 missing \(model.layers.1.attention.wo.Plora_B.weight\)"):
            load(folder)

    def test_unexpected(self, golden_folder, copy_of, rewrite_weights):
        folder = copy_of(golden_folder)
        rewrite_weights(folder, lambda s: s.update({"model.extra.weight": torch.ones(2)}))
        with pytest.raises(RankerLoadError, match=r"1 unexpected \(model.extra.weight\)"):
            load(folder)

    def test_of_another_shape(self, golden_folder, copy_of, rewrite_weights):
        folder = copy_of(golden_folder)
        rewrite_weights(folder, lambda s: s.update({"output.weight": torch.ones(100, 64)}))
        with pytest.raises(RankerLoadError, match=r"output.weight: stored \(100, 64\), config says \(200, 64\)"):
            load(folder)

    @pytest.mark.parametrize(
        "stray",
        ["vit.vision_tower.vision_model.embeddings.position_ids", "model.layers.0.attention.rotary_emb.inv_freq"],
    )
    def test_known_harmless_ones_pass(self, golden_folder, copy_of, rewrite_weights, stray):
        folder = copy_of(golden_folder)
        rewrite_weights(folder, lambda s: s.update({stray: torch.arange(17)[None]}))
        _, info = load(folder, output_loading_info=True)
        assert not info["unexpected_keys"]

    def test_only_those(self, golden_folder, copy_of, rewrite_weights):
        folder = copy_of(golden_folder)
        rewrite_weights(folder, lambda s: s.update({"model.position_ids.weight": torch.ones(2)}))
        with pytest.raises(RankerLoadError, match="unexpected"):
            load(folder)


class TestOtherGenerations:
    @pytest.mark.parametrize(
        ("mark", "name"), [("Image_transform", "InternLM-XComposer-2.5"), ("HD_transform", "4KHD")]
    )
    def test_by_their_tiling_module(self, golden_folder, copy_of, mark, name):
        folder = copy_of(golden_folder)
        (folder / "ixc_utils.py").write_text(f"raise SystemExit  # never run\ndef {mark}(img, hd_num=25): ...\n")
        with pytest.raises(RankerLoadError, match=f"{name}, which cuts images into tiles.*vl-7b"):
            load(folder)

    def test_by_their_index(self, published_folder, copy_of):
        folder = copy_of(published_folder)
        path = folder / "pytorch_model.bin.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["plora_glb_GN"] = SHARD
        path.write_text(json.dumps(index))
        with pytest.raises(RankerLoadError, match="4KHD or 2.5"):
            load(folder)

    def test_by_their_weights(self, golden_folder, copy_of, rewrite_weights):
        folder = copy_of(golden_folder)
        rewrite_weights(folder, lambda s: s.update({"plora_glb_GN": torch.zeros(1, 1, 64)}))
        with pytest.raises(RankerLoadError, match="tiling model"):
            load(folder)

    def test_the_composition_model_at_224_px_is_supported_and_said(self, golden_folder, caplog):
        from rar_mmdet.rankers.internlm_xc2 import IXC2Config

        config = IXC2Config(img_size=224)
        assert config.num_image_tokens == 256
        with caplog.at_level(logging.WARNING):
            IXC2Config.from_dict({**config.to_dict(), "vision_config": None})
        assert "InternLM-XComposer2-7B" in caplog.text


def test_transformers_too_old(golden_folder, monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.0.0")
    with pytest.raises(HostError, match=r"needs transformers>=5.16, found 5.0.0: run `pip install"):
        IXC2ForConditionalGeneration.from_pretrained(golden_folder)


class TestFiles:
    def test_missing_shard(self, published_folder, copy_of):
        folder = copy_of(published_folder)
        (folder / SHARD).unlink()
        with pytest.raises(MissingAssetError, match=f"lacks 1 of 2 shards.*{SHARD}"):
            load(folder)

    def test_no_weights(self, published_folder, tmp_path):
        (tmp_path / "config.json").write_text((published_folder / "config.json").read_text())
        with pytest.raises(MissingAssetError, match="holds no weights: expected one of model.safetensors"):
            load(tmp_path)

    @pytest.mark.parametrize("left", [0, 5, 200, 5000])
    @pytest.mark.parametrize("kind", ["bin", "safetensors"])
    def test_truncated(self, published_folder, golden_folder, copy_of, left, kind):
        folder = copy_of(published_folder if kind == "bin" else golden_folder)
        path = folder / (SHARD if kind == "bin" else "model.safetensors")
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(RankerLoadError, match=f"{path.name} is truncated or damaged: {left} bytes.*again"):
            load(folder)

    def test_broken_index(self, published_folder, copy_of):
        folder = copy_of(published_folder)
        (folder / "pytorch_model.bin.index.json").write_text("{")
        with pytest.raises(RankerLoadError, match="not valid JSON"):
            load(folder)

    def test_wrong_hash(self, golden_folder, copy_of, monkeypatch):
        folder = copy_of(golden_folder)
        path = folder / "model.safetensors"
        entry = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        (folder / MANIFEST).write_text(json.dumps({"files": {path.name: entry}}))
        monkeypatch.setenv("RAR_XC2_VERIFY", "hash")
        load(folder)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(RankerLoadError, match="has sha256 .* but rar_manifest.json says"):
            load(folder)


class TestMemory:
    def test_loading_on_too_small_a_gpu_says_what_fits(self, golden_folder, monkeypatch):
        monkeypatch.setattr("rar_mmdet.rankers.internlm_xc2.footprint.free_bytes", lambda device: 10_000)
        with pytest.raises(RankerLoadError, match=r"cuda:0 has .* free.*4 bit .*server.*smaller model"):
            load(golden_folder, device_map="cuda:0")

    def test_moving_to_too_small_a_gpu_says_what_fits(self, golden_folder, monkeypatch):
        monkeypatch.setattr("rar_mmdet.rankers.internlm_xc2.footprint.free_bytes", lambda device: 10_000)
        model = load(golden_folder)
        monkeypatch.setattr(torch, "empty", lambda *_: FakeOnGpu())
        with pytest.raises(RankerLoadError, match=r"What fits instead: bf16.*4 bit"):
            model.to("cuda")

    def test_four_bit_leaves_image_parts_and_output_exact(self):
        from rar_mmdet.rankers.internlm_xc2.footprint import quantize_language_model_only

        given = BitsAndBytesConfig(load_in_4bit=True)
        chosen = quantize_language_model_only(given)
        assert set(chosen.llm_int8_skip_modules) == {"vit", "vision_proj", "output", "Plora_A", "Plora_B"}
        assert given.llm_int8_skip_modules is None
        own = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["output"])
        assert quantize_language_model_only(own) is own

    def test_base_linears_are_plain_so_that_quantisers_find_them(self, golden_folder):
        model: IXC2ForConditionalGeneration = load(golden_folder)
        for name, module in model.model.named_modules():
            if name.endswith(".base"):
                assert type(module) is torch.nn.Linear


class FakeOnGpu:
    """What `torch.empty(0).to('cuda')` would give."""

    def to(self, *args, **kwargs):
        self.device, self.dtype = torch.device("cuda:0"), torch.float32
        return self
