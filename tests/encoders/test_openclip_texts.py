"""Texts with shared beginnings against the tower itself, and what is spared."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.transformer import LayerNorm, ResidualAttentionBlock

from rar_mmdet.encoders import openclip_texts
from rar_mmdet.encoders.openclip_texts import can_share, encode_shared
from rar_mmdet.memory.templates import CLIP80

NAMES = ["cup", "bow (weapon)", "ice-cream", "a very long name of a thing that has more tokens than its template"]
TEXTS = [template.replace("{}", name) for name in NAMES for template in CLIP80]


@pytest.fixture(scope="module", params=["CLIP", "custom text, Linear, layer scale"])
def tower(request):
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
    if request.param == "CLIP":
        return open_clip.CLIP(16, vision, text).eval()
    text |= {"proj_bias": True, "ls_init_value": 0.5}
    return open_clip.CustomTextCLIP(16, vision, text).eval().text


def tokens_of(texts):
    tokens = open_clip.get_tokenizer("ViT-B-16")(texts)
    return tokens, tokens.argmax(dim=1) + 1


@torch.inference_mode()
def own(tower, tokens):
    return tower(tokens) if hasattr(tower, "pool_type") else tower.encode_text(tokens)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@torch.inference_mode()
def test_equal_the_tower_itself(tower, batch_size):
    texts = TEXTS if batch_size > 1 else TEXTS[::40]
    tokens, lengths = tokens_of(texts)
    found = encode_shared(tower, tokens, lengths, batch_size)
    torch.testing.assert_close(found, own(tower, tokens), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_odd_texts(tower):
    """None, one, the same twice, one that is the beginning of another, one that fills the tower."""
    for texts in (["cup"], ["cup", "cup"], ["", "a", "a photo", "a photo of"], ["cup " * 200, "cup " * 199, "cup"]):
        tokens, lengths = tokens_of(texts)
        torch.testing.assert_close(encode_shared(tower, tokens, lengths, 4), own(tower, tokens), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_order_and_memory_do_not_matter(tower, monkeypatch):
    tokens, lengths = tokens_of(TEXTS)
    found = encode_shared(tower, tokens, lengths, 64)
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode_shared(tower, tokens[order], lengths[order], 64), found[order], atol=1e-5, rtol=0)
    monkeypatch.setattr(openclip_texts, "BEGINNING_COLUMNS", 9)
    torch.testing.assert_close(encode_shared(tower, tokens, lengths, 64), found, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_fewer_columns_than_without_any_padding(tower):
    columns = []
    handle = tower.token_embedding.register_forward_pre_hook(lambda _, args: columns.append(args[0].numel()))
    names = ["cup", "red cup", "bow (weapon)", "ice cream cone", "cat", "dog", "street sign", "tree", "car", "bus"]
    tokens, lengths = tokens_of([template.replace("{}", name) for name in names for template in CLIP80])
    encode_shared(tower, tokens, lengths, 64)
    handle.remove()
    assert sum(columns) < 0.6 * int(lengths.sum())


def test_other_blocks_are_left_to_open_clip(tower):
    assert can_share(tower)
    block = ResidualAttentionBlock(32, 2, is_cross_attention=True, norm_layer=LayerNorm)
    kept, tower.transformer.resblocks[1] = tower.transformer.resblocks[1], block
    assert not can_share(tower)
    tower.transformer.resblocks[1] = kept
