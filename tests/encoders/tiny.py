"""A tiny random open_clip model folder, written the way published folders are."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CONTEXT = 12
WORDS = ["a", "photo", "of", "the", "red", "blue", "star", "cup", "bow", "drink", "weapon", "square", "circle"]


def model_config(*, siglip: bool = False, custom_text: bool = False, image_size: int = 32) -> dict:
    config: dict = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": image_size, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 3 + len(WORDS) + 256,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "local",
            "tokenizer_kwargs": {"clean_up_tokenization_spaces": False},
        },
    }
    if custom_text:
        config["custom_text"] = True
    if siglip:
        config |= {"custom_text": True, "init_logit_scale": 2.3, "init_logit_bias": -10}
    return config


def write_tokenizer(folder: Path) -> None:
    """Word-level for the known words, else bytes; the end token has the highest id, as in CLIP's vocabulary."""
    vocab = {"<pad>": 0, "<s>": 1}
    for word in WORDS:
        vocab[word] = len(vocab)
    vocab["<unk>"] = len(vocab)
    end = 2 + len(WORDS) + 256
    vocab["</s>"] = end
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<pad>",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "padding_side": "right",
            }
        )
    )


def write_model(
    folder: Path, *, seed: int = 0, siglip: bool = False, custom_text: bool = False, image_size: int = 32
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(siglip=siglip, custom_text=custom_text, image_size=image_size)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    write_tokenizer(folder)
    torch.manual_seed(seed)
    cls = open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    model = cls(**{k: v for k, v in config.items() if k != "custom_text"})
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(folder / "open_clip_model.safetensors"))
    return folder
