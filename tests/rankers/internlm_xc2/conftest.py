"""The golden numbers of the authors' code, and folders in the published layout with a trained tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from rar_mmdet.rankers.internlm_xc2 import IXC2Config, IXC2ForConditionalGeneration

GOLDEN = Path(__file__).parents[2] / "data" / "ixc2_a"


class Golden:
    """Inputs and outputs of the original implementation; README.md beside them says what is what."""

    def __init__(self):
        self.inputs = load_file(GOLDEN / "inputs.safetensors")
        self.outputs = load_file(GOLDEN / "outputs.safetensors")
        self.image_token_id = json.loads((GOLDEN / "config.json").read_text())["image_token_id"]

    def sample(self, i):
        """Ids with placeholders, and the image, of sample i (sample 2 reuses the first image)."""
        ids = self.inputs[f"input_ids_{i}"]
        return ids.masked_fill(ids == -1, self.image_token_id), self.inputs["pixel_values"][i % 2][None]


@pytest.fixture(scope="session")
def golden():
    return Golden()


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """Only config and weights, as a published folder would be at the least."""
    folder = tmp_path_factory.mktemp("ixc2_a")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    return folder


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def model(request, golden_folder):
    return AutoModelForImageTextToText.from_pretrained(golden_folder, attn_implementation=request.param)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """A SentencePiece model with the kinds of the published one: BPE, byte fallback, no dummy prefix, turn marks."""
    import sentencepiece

    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "which", "is", "it", "cat"]
    words += ["traffic", "light", "zebra", "user", "assistant", "shown"]
    lines = [f"{a} {b} {c}?" for a in words for b in words for c in words[:3]]
    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(prefix),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


PUBLISHED_TOKENIZER_CONFIG = {
    "tokenizer_class": "InternLMXComposer2Tokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_internlm_xcomposer2.InternLMXComposer2Tokenizer", None]},
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
}


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory, tokenizer_file):
    """A complete folder in the published layout, small and random: sharded `.bin`, tokenizer.model, published keys."""
    folder = tmp_path_factory.mktemp("published")
    tiny = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
        "image_size": 42, "patch_size": 14,
    }  # fmt: skip
    config = IXC2Config(
        vocab_size=360, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, img_size=42, vision_config=tiny, plora_rank=4, plora_alpha=8, end_of_turn_id=3,
        max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = IXC2ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    state = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    state["vit.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    names = sorted(state)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": {n: state[n].clone() for n in names[i::2]} for i in range(2)}
    for file, tensors in shards.items():
        torch.save(tensors, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    published = {**config.to_dict(), "use_cache": False, "max_length": 64, "model_type": "internlmxcomposer2"}
    (folder / "config.json").write_text(json.dumps(published, default=str))
    (folder / "tokenizer_config.json").write_text(json.dumps(PUBLISHED_TOKENIZER_CONFIG))
    shutil.copy(tokenizer_file, folder / "tokenizer.model")
    return folder


@pytest.fixture
def copy_of(tmp_path):
    """A writable copy of a folder."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def rewrite_weights():
    """Change the state dict of a folder with one model.safetensors."""

    def rewrite(folder, change):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite
