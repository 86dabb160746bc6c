"""The GPU benchmark's own code, with tiny shapes on the CPU: every figure comes out, and without CUDA it says so."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **sizes),
        text_config=LlamaConfig(vocab_size=400, **sizes),
        image_token_index=399,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )


def tiny_qwen():
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config={
            "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        image_token_id=399, video_token_id=398, vision_start_token_id=397, vision_end_token_id=396,
    )  # fmt: skip


def test_every_figure_comes_out(gpu):
    shapes = [
        gpu.Shape("tiny LLaVA", tiny_llava, 4, 3, side=28),
        gpu.Shape("tiny Qwen3-VL", tiny_qwen, 4, 3, grid=(4, 4)),
    ]
    result = gpu.measure(
        torch.device("cpu"), torch.float32, shapes, side=64, photo=(120, 160, 5), encoder=("ViT-B-32", 2), reply=3,
        demo_photos=2, trained=shapes[0], batches=(1, 2),
    )  # fmt: skip
    assert result["cut_grey_levels_most"] == 0  # both are the CPU's
    assert result["encode_images_per_s"] > 0
    assert result["encode_bf16_cosine_least"] > 0.999
    assert result["encode_gflops_per_image"] == pytest.approx(8.8, rel=0.03)  # 4.4 GMACs as published for ViT-B/32
    assert set(result["rankers"]) == {"tiny LLaVA", "tiny Qwen3-VL"}
    assert result["training"]["batch 2"]["samples_per_s"] > 0
    for row in result["rankers"].values():
        assert row["share_of_limit"] > 0
        assert all(
            row[way] > 0 for way in ("likelihood", "letter", "letter_all_shifts", "yesno", "generate", "released")
        )


@pytest.mark.parametrize("name", ["LLaVA-1.5-7B", "InternLM-XComposer2-7B", "Qwen3-VL-2B", "Qwen3-VL-8B"])
def test_published_sizes_are_what_their_names_say(gpu, name):
    """Counted without memory: billions of parameters, by the published checkpoints."""
    shape = next(shape for shape in gpu.SHAPES if shape.name == name)
    gpu.register_native_models()
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shape.config())
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    published = {"LLaVA-1.5-7B": 7.06, "InternLM-XComposer2-7B": 8.6, "Qwen3-VL-2B": 2.13, "Qwen3-VL-8B": 8.77}
    assert billions == pytest.approx(published[name], rel=0.06)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_it_says_so():
    ran = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True)
    assert ran.stdout == "no CUDA device on this machine: nothing is measured\n"
