"""Tiny random models of transformers in the published layout, each with a real processor and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    BitImageProcessor,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
    Tipsv2Config,
    Tipsv2ImageProcessor,
    Tipsv2Model,
    Tipsv2Tokenizer,
)

WORDS = ["a", "photo", "of", "the", "red", "blue", "star", "cup", "bow", "drink", "."]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = (
    "clip",
    "siglip",
    "siglip2-fixed",
    "siglip2-naflex",
    "chinese_clip",
    "metaclip_2",
    "altclip",
    "tipsv2",
    "dinov2",
    "dinov3",
)


def _clip_tokenizer() -> CLIPTokenizer:
    vocab: dict[str, int] = {}
    for letter in LETTERS:
        vocab[letter] = len(vocab)
        vocab[f"{letter}</w>"] = len(vocab)
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def gemma_tokenizer() -> Siglip2Tokenizer:
    """SigLIP 2's own class, with the special ids and the side of padding of the published files."""
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5}
    for letter in LETTERS:
        vocab[letter] = len(vocab)
    tokenizer = Siglip2Tokenizer(vocab=vocab, merges=[], padding_side="right")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


def _write_sentencepiece(folder: Path) -> None:
    """SigLIP's own class; as in the published files the end token, id 1, is the padding too."""
    sentences = [
        "a photo of a red star",
        "the blue bow of a cup",
        "drink",
        "quick brown foxes jump over lazy dogs",
        "viz",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 5),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16).save_pretrained(folder)
    (folder / "spiece.vocab").unlink()


def _write_words(folder: Path, start: str, end: str) -> None:
    vocab = {word: i for i, word in enumerate(("<pad>", end, start, "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{start} $A {end}" if start == "[CLS]" else f"$A {end}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", "model_max_length": 16}
    tokens = {"pad_token": "<pad>", "eos_token": end, "bos_token": start, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | tokens))


def write_model(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder with config, weights, processor and tokenizer of a model of that kind."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    square = {"height": 32, "width": 32}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    text = {**TOWER, "vocab_size": 64, "max_position_embeddings": 16}
    if kind == "clip":
        tokenizer = _clip_tokenizer()
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = CLIPConfig(text_config=text | ids, vision_config=vision, projection_dim=24)
        CLIPModel(config).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    elif kind in ("siglip", "siglip2-fixed"):  # published models of SigLIP 2 of fixed size are of SigLIP's class
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        SiglipImageProcessor(size=square).save_pretrained(folder)
        if kind == "siglip":
            _write_sentencepiece(folder)
        else:
            gemma_tokenizer().save_pretrained(folder)
    elif kind == "siglip2-naflex":
        vision = {**TOWER, "num_patches": 16, "patch_size": 8}
        Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
        Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
        gemma_tokenizer().save_pretrained(folder)
    elif kind == "chinese_clip":
        config = ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        ChineseCLIPModel(config).save_pretrained(folder)
        ChineseCLIPImageProcessor(size=square, do_center_crop=False).save_pretrained(folder)
        _write_words(folder, "[CLS]", "[SEP]")
    elif kind == "metaclip_2":
        config = MetaClip2Config(text_config=text | {"eos_token_id": 1}, vision_config=vision, projection_dim=24)
        MetaClip2Model(config).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
        _write_words(folder, "<s>", "</s>")
    elif kind == "altclip":
        text |= {"max_position_embeddings": 18, "pad_token_id": 0, "project_dim": 24, "type_vocab_size": 1}
        config = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        AltCLIPModel(config).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
        _write_words(folder, "[CLS]", "[SEP]")
    elif kind == "dinov2":
        Dinov2Model(Dinov2Config(**TOWER, image_size=32, patch_size=8)).save_pretrained(folder)
        BitImageProcessor(size={"shortest_edge": 36}, crop_size=square).save_pretrained(folder)
    elif kind == "dinov3":
        DINOv3ViTModel(DINOv3ViTConfig(**TOWER, image_size=32, patch_size=8)).save_pretrained(folder)
        DINOv3ViTImageProcessor(size=square).save_pretrained(folder)
    elif kind == "tipsv2":
        towers = {key: value for key, value in TOWER.items() if key != "intermediate_size"}
        config = Tipsv2Config(text_config=text, vision_config=towers | {"image_size": 32, "patch_size": 8})
        model = Tipsv2Model(config)
        # Published files lack the temperature, which the config has.
        weights = {name: tensor for name, tensor in model.state_dict().items() if name != "temperature"}
        model.save_pretrained(folder, state_dict=weights)
        Tipsv2ImageProcessor(size=square).save_pretrained(folder)
        vocab = {"<pad>": 0, "<unk>": 1, "▁": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
        Tipsv2Tokenizer(vocab=vocab, merges=[], model_max_length=16).save_pretrained(folder)
    else:
        raise ValueError(kind)
    return folder
