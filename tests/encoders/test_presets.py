"""Presets against open_clip's own registry, and the traps of their families on towers made small."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers_world import gemma_tokenizer

from rar_mmdet import encoders
from rar_mmdet.components import build_component
from rar_mmdet.encoders import FGCLIP2Encoder, FGCLIP2RegionEncoder, OpenClipEncoder, TransformersEncoder
from rar_mmdet.encoders.openclip import _trimmable
from rar_mmdet.encoders.presets import find_preset, read_presets
from rar_mmdet.encoders.weights import locate
from rar_mmdet.errors import ConfigError
from rar_mmdet.memory import TextMemory
from rar_mmdet.memory.templates import TEMPLATE_SETS

OF_OPEN_CLIP = [preset for preset in read_presets() if preset.type == "OpenClipEncoder"]
NAME = {"argnames": "preset", "ids": lambda preset: preset.name}


def small(preset, **text):
    """The preset's architecture with one narrow layer a tower; what decides about texts is kept."""
    config = open_clip.get_model_config(preset.arguments["model"])
    config["embed_dim"] = 16
    config["vision_cfg"] = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2, **text}
    return config


def build(config):
    torch.manual_seed(0)
    cls = open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    return cls(**{key: value for key, value in config.items() if key != "custom_text"})


def encoder_of(preset, folder, tokenizer=None, **text):
    """A folder of the small model in open_clip's layout, and its encoder."""
    config = small(preset, **text)
    mean_std = {"mean": preset.mean, "std": preset.std}
    content = {"model_cfg": config, "preprocess_cfg": mean_std | {"interpolation": preset.interpolation}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in build(config).state_dict().items()}
    save_file(weights, str(folder / "open_clip_model.safetensors"))
    return OpenClipEncoder(model=f"local-dir:{folder}", device="cpu")


@pytest.mark.parametrize(argvalues=OF_OPEN_CLIP, **NAME)
def test_facts_are_those_of_open_clip(preset):
    model, tag = preset.arguments["model"], preset.arguments["pretrained"]
    config, weights = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    assert weights, f"open_clip has no {model} {tag}"
    assert preset.dim == config["embed_dim"]
    assert preset.image_size == config["vision_cfg"]["image_size"]
    assert preset.text_length == config["text_cfg"]["context_length"]
    assert (preset.resize, preset.interpolation) == (weights["resize_mode"], weights["interpolation"])
    assert (preset.mean, preset.std) == (list(weights["mean"]), list(weights["std"]))
    assert preset.quick_gelu == bool(weights.get("quick_gelu") or config.get("quick_gelu"))
    assert (preset.padding == "full") == bool(config["text_cfg"].get("no_causal_mask"))
    assert preset.bias == ("init_logit_bias" in config)
    assert preset.source == f"https://huggingface.co/{weights['hf_hub'].rstrip('/')}"
    if "hf_tokenizer_name" not in config["text_cfg"]:
        assert preset.cleaning == open_clip.get_tokenizer(model).clean_fn.__name__.removeprefix("_clean_")
    else:
        default = inspect.signature(open_clip.tokenizer.HFTokenizer).parameters["clean"].default
        assert preset.cleaning == config["text_cfg"].get("tokenizer_kwargs", {}).get("clean", default)


@pytest.mark.parametrize(argvalues=OF_OPEN_CLIP, **NAME)
def test_quick_gelu_is_what_the_weights_were_trained_with(preset):
    """The encoder takes it from the tag's entry, or from the architecture's own name."""
    source = locate(preset.arguments["model"], preset.arguments["pretrained"])
    forced = bool(source.config["tag"].get("quick_gelu"))
    named = bool(source.config["model_cfg"].get("quick_gelu"))
    assert preset.quick_gelu == (forced or named)
    assert not (named and not forced), "named a QuickGELU model, but the weights are not of one"


@pytest.mark.parametrize(argvalues=OF_OPEN_CLIP, **NAME)
def test_texts_are_trimmed_only_where_padding_has_no_say(preset):
    model = build(small(preset, vocab_size=64))
    # Meta CLIP 2 is pooled at the first end token, which the trimming does not look for.
    trims = preset.padding == "free" and not preset.name.startswith("metaclip2")
    assert (_trimmable(model) is not None) == trims


def test_texts_of_siglip2_are_padded_to_64_and_canonicalised(tmp_path):
    preset = find_preset("siglip2-so400m-384")
    encoder = encoder_of(preset, tmp_path, gemma_tokenizer(), vocab_size=64, hf_tokenizer_name="local")
    state = encoder._ready()[0]
    assert state.tokenizer(["cup"]).shape == (1, 64)
    assert state.text_trim is None
    torch.testing.assert_close(encoder.encode_texts(["A Red, CUP."]), encoder.encode_texts(["a red cup"]))
    alone, company = encoder.encode_texts(["cup"]), encoder.encode_texts(["cup", "a photo of a red star"])
    torch.testing.assert_close(company[:1], alone, atol=1e-5, rtol=0)


def test_long_texts_of_pe_core_are_warned_of(tmp_path, caplog):
    preset = find_preset("pe-core-l14-336")
    encoder = encoder_of(preset, tmp_path)
    with caplog.at_level(logging.WARNING, logger="rar_mmdet"):
        encoder.encode_texts(["a photo of a cup"])
        assert not caplog.records
        encoder.encode_texts(["a cup " * 20])
    assert "1 of 1 texts exceed 32 tokens and are cut" in caplog.text


@pytest.mark.parametrize(argvalues=read_presets(), **NAME)
def test_every_preset_builds_and_says_what_is_missing(preset, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = build_component({"type": "Encoder", "preset": preset.name, "device": "cpu"}, "encoder")
    assert isinstance(encoder, getattr(encoders, preset.type))
    assert all("hf download" in line or "download" in line for line in encoder.missing_assets())


@pytest.mark.parametrize(argvalues=read_presets(), **NAME)
def test_templates_are_a_set_and_temperatures_those_of_the_class(preset):
    assert preset.templates is None or preset.templates in TEMPLATE_SETS
    if preset.temperature is not None:
        assert preset.build().logit_scale == 1 / preset.temperature


def test_a_bias_cancels_in_a_softmax_over_names(tmp_path):
    """A sigmoid of cosines is no probability over names: one name of an obvious picture gets little."""
    preset = find_preset("siglip2-b16-224")
    encoder = encoder_of(preset, tmp_path, gemma_tokenizer(), vocab_size=64, hf_tokenizer_name="local")
    assert preset.bias
    assert encoder.logit_bias == pytest.approx(-10)
    names, crop = ["cup", "bow", "star"], torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    found = (
        TextMemory(cache_dir=None, templates="single").prepare(encoder, names).search(encoder.encode_images(crop), 3)
    )
    cosines = encoder.encode_images(crop) @ encoder.encode_texts([f"a photo of a {name}." for name in names]).T
    for bias in (0.0, encoder.logit_bias):
        expected = (encoder.logit_scale * cosines + bias).softmax(dim=1)[0]
        torch.testing.assert_close(found.probs[0], expected[found.category_ids[0]], atol=1e-5, rtol=0)
    assert (encoder.logit_scale * cosines + encoder.logit_bias).sigmoid().sum() < 0.5


def test_names_are_unique():
    names = [preset.name for preset in read_presets()]
    assert len(set(names)) == len(names)


def test_the_files_travel_with_the_package(tmp_path):
    root = Path(encoders.__file__).parents[2]
    command = [sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    folder = "rar_mmdet/encoders/presets"
    assert {p.name for p in (tmp_path / folder).glob("*.json")} == {p.name for p in (root / folder).glob("*.json")}


def test_kinds_of_encoders():
    assert type(find_preset("fg-clip2-base").build()) is FGCLIP2Encoder
    assert type(find_preset("fg-clip2-base-regions").build()) is FGCLIP2RegionEncoder
    assert type(find_preset("siglip2-b16-naflex").build()) is TransformersEncoder
    assert find_preset("openai-clip-b16").build(batch_size=7).batch_size == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "siglip2-so400-384"}, "no encoder preset 'siglip2-so400-384'; nearest: siglip2-so400m-384"),
        ({"preset": "zzz"}, r"no encoder preset 'zzz'\. `rar-mmdet encoders` lists them"),
        ({"preset": "openai-clip-b16", "batchsize": 3}, "has no key 'batchsize'; did you mean 'batch_size'"),
        ({}, "needs the key"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_component({"type": "Encoder", **settings}, "model.recognizer.encoder")
