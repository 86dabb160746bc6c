"""Tiny random detectors of transformers in the published layout, each with a real processor and tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    HGNetV2Config,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

CLASSES = {0: "cat", 1: "dog", 2: "red star"}
LABELS = {"id2label": CLASSES, "label2id": {name: i for i, name in CLASSES.items()}}
WORDS = ["a", "photo", "of", "cat", "dog", "red", "star", "object", "animal", "thing", "cup", "bow", "blue"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
CLOSED = ("rt_detr", "d_fine", "deimv2", "yolos")
BY_TEXT = ("grounding-dino", "mm-grounding-dino", "owlv2", "sam3")
KINDS = CLOSED + BY_TEXT


def _bert_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "##s", *WORDS]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=256)


def clip_tokenizer() -> CLIPTokenizer:
    vocab: dict[str, int] = {}
    for letter in LETTERS:
        vocab[letter] = len(vocab)
        vocab[f"{letter}</w>"] = len(vocab)
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def _hybrid(width: int = 32) -> dict:
    return {
        "encoder_in_channels": [16, 24, 32],
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": 48,
        "encoder_attention_heads": 2,
        "decoder_in_channels": [width] * 3,
        "d_model": width,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 2,
        "decoder_layers": 2,
        "hidden_expansion": 0.5,
        "num_queries": 20,
        "num_denoising": 4,
        **LABELS,
    }


def _hgnet() -> HGNetV2Config:
    return HGNetV2Config(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        stem_channels=[3, 4, 8],
        stage_in_channels=[8, 8, 16, 24],
        stage_mid_channels=[4, 8, 8, 8],
        stage_out_channels=[8, 16, 24, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def _grounding(kind: str) -> torch.nn.Module:
    text = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    config_class, model_class = (
        (GroundingDinoConfig, GroundingDinoForObjectDetection)
        if kind == "grounding-dino"
        else (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
    )
    config = config_class(
        text_config=text,
        backbone_config=backbone,
        num_queries=12,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        num_feature_levels=4,
    )
    return model_class(config)


def _sam3() -> torch.nn.Module:
    tokenizer = clip_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    tower = {
        **small,
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 2,
        "image_size": 56,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }
    vision = {
        "backbone_config": tower,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
    }
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 1,
        "projection_dim": 32,
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return Sam3Model(
        Sam3Config(
            vision_config=vision,
            text_config=text,
            geometry_encoder_config={**small, "num_layers": 1},
            detr_encoder_config={**small, "num_layers": 1},
            detr_decoder_config={**small, "num_layers": 1, "num_queries": 6},
            mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
        )
    )


def write_detector(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder with config, weights, processor and, where it reads texts, tokenizer of a model of that kind."""
    torch.manual_seed(seed)
    square = {"height": 64, "width": 64}
    if kind == "rt_detr":
        backbone = RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        model: torch.nn.Module = RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **_hybrid()))
        RTDetrImageProcessor(size=square).save_pretrained(folder)
    elif kind == "d_fine":
        model = DFineForObjectDetection(DFineConfig(backbone_config=_hgnet(), **_hybrid()))
        RTDetrImageProcessor(size=square).save_pretrained(folder)
    elif kind == "deimv2":
        model = Deimv2ForObjectDetection(Deimv2Config(backbone_config=_hgnet(), **_hybrid()))
        RTDetrImageProcessor(size=square).save_pretrained(folder)
    elif kind == "yolos":
        config = YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=[64, 64],
            num_detection_tokens=10,
            use_mid_position_embeddings=False,
            **LABELS,
        )
        model = YolosForObjectDetection(config)
        YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    elif kind in ("grounding-dino", "mm-grounding-dino"):
        model = _grounding(kind)
        GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
        _bert_tokenizer().save_pretrained(folder)
    elif kind == "owlv2":
        tokenizer = clip_tokenizer()
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        vision = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        }
        model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32))
        for weight in model.box_head.parameters():  # as it is born it gives boxes without any size
            weight.data *= 0.1
        Owlv2ImageProcessor(size=square).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    elif kind == "sam3":
        model = _sam3()
        Sam3ImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
        clip_tokenizer().save_pretrained(folder)
    else:
        raise ValueError(kind)
    model.eval().save_pretrained(folder)
    return folder
