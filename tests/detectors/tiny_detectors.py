"""Tiny random detectors of transformers in the published layout, each with a real processor and tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTokenizer,
    HGNetV2Config,
    LwDetrViTConfig,
    ResNetConfig,
    RfDetrDinov2Config,
    RTDetrResNetConfig,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    SwinConfig,
)

CLASSES = {0: "cat", 1: "dog", 2: "red star"}
LABELS = {"id2label": CLASSES, "label2id": {name: i for i, name in CLASSES.items()}}
WORDS = ["a", "photo", "of", "cat", "dog", "red", "star", "object", "animal", "thing", "cup", "bow", "blue"]
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
SOFTMAX = ("detr", "table-transformer", "yolos")  # their last class is "no object"
HYBRID = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
DETRS = ("detr", "table-transformer", "conditional_detr", "deformable_detr", "dab-detr")
CLOSED = (*HYBRID, *DETRS, "rf_detr", "lw_detr", "yolos")
BY_TEXT = ("grounding-dino", "mm-grounding-dino", "owlvit", "owlv2", "omdet-turbo", "sam3")
KINDS = CLOSED + BY_TEXT
SQUARE = {"height": 64, "width": 64}
EDGES = {"shortest_edge": 48, "longest_edge": 96}
# How transformers spells a family in its classes' names, where that is not its `model_type` in capitals.
SPELT = {
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetrV2",
    "d_fine": "DFine",
    "grounding-dino": "GroundingDino",
    "mm-grounding-dino": "MMGroundingDino",
    "owlvit": "OwlViT",
    "omdet-turbo": "OmDetTurbo",
}


def _classes(kind: str) -> tuple[type, type]:
    """Config and model class of a family."""
    name = SPELT.get(kind, "".join(part.capitalize() for part in kind.replace("-", "_").split("_")))
    return getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForObjectDetection")


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


def _resnet(kind: type, *stages: str) -> object:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return kind(**sizes, out_features=list(stages))


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )


def _detr(kind: str) -> dict:
    """Settings of DETR and its relatives."""
    several = ("stage2", "stage3", "stage4") if kind == "deformable_detr" else ("stage4",)
    width = {"hidden_size": 32} if kind == "dab-detr" else {"d_model": 32}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    feed = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return {"backbone_config": _resnet(ResNetConfig, *several), "num_queries": 12, **width, **layers, **feed, **LABELS}


def _lightweight(kind: str) -> dict:
    """Settings of RF-DETR and LW-DETR."""
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 64}
    if kind == "rf_detr":
        backbone = RfDetrDinov2Config(**tower, patch_size=16, num_windows=2, out_indices=[1, 2])
        more: dict = {}
    else:
        windows = {"num_windows": 4, "window_block_indices": [0], "pretrain_image_size": 64}
        backbone = LwDetrViTConfig(**tower, **windows, patch_size=8, out_indices=[1, 2])
        more = {"projector_scale_factors": [1.0]}
    heads = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2}
    size = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 12, "group_detr": 2}
    return {"backbone_config": backbone, **heads, **size, "c2f_num_blocks": 1, **more, **LABELS}


def _grounding() -> dict:
    """Settings of both Grounding DINOs."""
    text = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    feed = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    return {"text_config": text, "backbone_config": _swin(), "num_queries": 12, "d_model": 32, **layers, **feed}


def _small_text(tokenizer: CLIPTokenizer) -> dict:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), **SMALL, **ends}


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _owl() -> dict:
    """Settings of OWL-ViT and OWLv2."""
    vision = {**SMALL, "image_size": 64, "patch_size": 16}
    return {"text_config": _small_text(clip_tokenizer()), "vision_config": vision, "projection_dim": 32}


def _omdet() -> dict:
    """Settings of OmDet-Turbo."""
    # The texts are of another width than the decoder, or transformers looks for a layer that it has not made.
    text = CLIPTextConfig(**{**_small_text(clip_tokenizer()), "hidden_size": 48}, projection_dim=48)
    texts = ("text_projection_in_dim", "text_projection_out_dim", "class_embed_dim")
    widths = (
        "task_encoder_hidden_dim",
        "encoder_hidden_dim",
        "encoder_dim_feedforward",
        "decoder_hidden_dim",
        "decoder_dim_feedforward",
    )
    return {
        "text_config": text,
        "backbone_config": _swin(),
        "apply_layernorm_after_vision_backbone": False,  # of timm's backbones, whose channels come last
        "image_size": 64,
        "num_queries": 12,
        "vision_features_channels": [32, 32, 32],
        "encoder_in_channels": [16, 32, 64],
        "encoder_attention_heads": 2,
        "decoder_num_heads": 2,
        "decoder_num_layers": 2,
        "disable_custom_kernels": True,
        **dict.fromkeys(texts, 48),
        **dict.fromkeys(widths, 32),
    }


def _yolos() -> dict:
    sizes = {"image_size": [64, 64], "num_detection_tokens": 10, "use_mid_position_embeddings": False}
    return {**SMALL, "num_hidden_layers": 2, **sizes, **LABELS}


def _settings(kind: str) -> dict:
    """Of the family's config class."""
    if kind in HYBRID:
        backbone = _hgnet()
        if kind.startswith("rt_detr"):
            backbone = _resnet(RTDetrResNetConfig, "stage2", "stage3", "stage4")
        return {"backbone_config": backbone, **_hybrid()}
    if kind in DETRS:
        return _detr(kind)
    makers = {"yolos": _yolos, "grounding-dino": _grounding, "mm-grounding-dino": _grounding, "omdet-turbo": _omdet}
    makers |= {"owlvit": _owl, "owlv2": _owl}
    return _lightweight(kind) if kind in ("rf_detr", "lw_detr") else makers[kind]()


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


def _processor(kind: str) -> object:
    if kind in HYBRID:
        return transformers.RTDetrImageProcessor(size=SQUARE)
    if "grounding" in kind:
        return transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    names = {"owlvit": "OwlViT", "owlv2": "Owlv2", "rf_detr": "RfDetr", "lw_detr": "DeformableDetr"}
    names |= {"omdet-turbo": "Detr", "yolos": "Yolos", "deformable_detr": "DeformableDetr"}
    names |= {"conditional_detr": "ConditionalDetr", "dab-detr": "ConditionalDetr"}
    square = kind in ("owlvit", "owlv2", "rf_detr", "lw_detr", "omdet-turbo")
    made: object = getattr(transformers, f"{names.get(kind, 'Detr')}ImageProcessor")(size=SQUARE if square else EDGES)
    return made


def write_detector(folder: Path, kind: str, seed: int = 0, **changes: object) -> Path:
    """A folder with config, weights, processor and, where it reads texts, tokenizer of a model of that kind.

    `changes` of the config's settings are not for SAM 3.
    """
    torch.manual_seed(seed)
    if kind == "sam3":
        model = _sam3()
        Sam3ImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
    else:
        config_class, model_class = _classes(kind)
        model = model_class(config_class(**{**_settings(kind), **changes}))
        _processor(kind).save_pretrained(folder)
    if kind == "dab-detr":
        for weight in model.model.decoder.parameters():  # as it is born all its scores are equal
            weight.data *= 4 if weight.ndim > 1 else 1
    if kind.startswith("owl"):
        for weight in model.box_head.parameters():  # as it is born it gives boxes without any size
            weight.data *= 0.1
    if kind in BY_TEXT:
        (_bert_tokenizer() if "grounding" in kind else clip_tokenizer()).save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder
