"""Published keys, published values, and the arithmetic of memory."""

import json

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig

from rar_mmdet.rankers.internlm_xc2 import IXC2Config, IXC2ForConditionalGeneration
from rar_mmdet.rankers.internlm_xc2.footprint import footprint


def test_published_values_where_the_file_is_silent():
    config = IXC2Config(img_size=490)
    assert (config.plora_rank, config.plora_alpha, config.image_token_id) == (256, 256, 92544)
    assert config.num_image_tokens == 1225
    assert config.stop_token_ids == [2, 92542]
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.hidden_act) == (1024, 24, "quick_gelu")


def test_file_is_read_by_the_auto_class(golden_folder, caplog):
    config = AutoConfig.from_pretrained(golden_folder)
    assert isinstance(config, IXC2Config)
    assert (config.vision_config.hidden_size, config.plora_rank, config.image_token_id) == (32, 8, 200)
    assert config.rope_parameters == {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0}
    assert "image_token_id" not in caplog.text


def test_round_trip(golden_folder, tmp_path):
    config = AutoConfig.from_pretrained(golden_folder)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    ignored = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in again.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }


def test_rope_scaling_forms_mean_the_same():
    old = IXC2Config(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0})
    new = IXC2Config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    assert old.rope_parameters == new.rope_parameters


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param({"num_attention_heads": 7}, "must be a multiple of num_attention_heads=7", id="heads"),
        pytest.param({"num_key_value_heads": 5}, "num_key_value_heads=5", id="kv-heads"),
        pytest.param({"plora_rank": 0}, "plora_rank must be at least 1", id="rank"),
        pytest.param(
            {"img_size": 490, "vision_config": {"image_size": 336}}, "img_size=490 but .*image_size=336", id="sizes"
        ),
        pytest.param({"vision_config": CLIPVisionConfig(image_size=[4, 4])}, "whole numbers of pixels", id="pair"),
    ],
)
def test_contradictions_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        IXC2Config(**keys)


@pytest.mark.parametrize("change", [{}, {"bias": True}, {"plora_rank": 3}, {"num_key_value_heads": 4}])
def test_footprint_counts_every_parameter(golden_folder, change):
    keys = json.loads((golden_folder / "config.json").read_text())
    config = IXC2Config(**{**keys, **change})
    with torch.device("meta"):
        model = IXC2ForConditionalGeneration(config)
    count = footprint(config)
    assert count.parameters == sum(p.numel() for p in model.parameters())
    base = sum(p.numel() for n, p in model.named_parameters() if n.endswith(".base.weight"))
    assert count.quantizable == base
    assert count.weight_bytes(2) == 2 * count.parameters


def test_footprint_of_the_published_model():
    """The figures that docs/internlm_xc2.md states."""
    count = footprint(IXC2Config(img_size=490))
    assert count.parameters == 8_666_840_064
    assert count.cache_values_per_token == 65536
    assert round(count.weight_bytes(2) / 2**30, 1) == 16.1
    assert round(count.weight_bytes(2, four_bit=True) / 2**30, 1) == 6.8
