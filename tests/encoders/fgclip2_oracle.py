"""FG-CLIP 2 in plain numpy and float64, from the tensors of a file alone: an oracle for any sizes.

One image or text at a time, without padding tricks, attention head by head. It follows the description of the published
model and shares nothing with the package but the names of the tensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from slow_pooling import pool

State = dict[str, np.ndarray]


def _linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def _mlp(state: State, name: str, x: np.ndarray) -> np.ndarray:
    h = _linear(state, f"{name}.fc1", x)
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return _linear(state, f"{name}.fc2", h)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    size = q.shape[1] // heads
    out = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for row in range(len(q)):
            weight = np.exp(k[:, part] @ q[row, part] / math.sqrt(size))
            out[row, part] = weight @ v[:, part] / weight.sum()
    return out


def _tower(state: State, prefix: str, config: Any, x: np.ndarray) -> np.ndarray:
    for layer in range(config.num_hidden_layers):
        name = f"{prefix}.encoder.layers.{layer}"
        y = _norm(state, f"{name}.layer_norm1", x, config.layer_norm_eps)
        q, k, v = (_linear(state, f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        x = x + _linear(state, f"{name}.self_attn.out_proj", _attend(q, k, v, config.num_attention_heads))
        x = x + _mlp(state, f"{name}.mlp", _norm(state, f"{name}.layer_norm2", x, config.layer_norm_eps))
    return x


def _triangle(length: int, side: int) -> np.ndarray:
    """(length, side) weights of an antialiased linear resize: a triangle over the cells that an output covers."""
    scale = side / length
    middles = (np.arange(length)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(side)[None] + 0.5 - middles) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def image_tokens(state: State, config: Any, patches: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h w, D) after the last norm, of (h w, 3 P P) patches."""
    vision = config.vision_config
    side = math.isqrt(vision.num_patches)
    table = state["vision_model.embeddings.position_embedding.weight"].reshape(side, side, -1)
    rows, columns = (_triangle(length, side) for length in shape)
    positions = np.einsum("ia,jb,abd->ijd", rows, columns, table).reshape(len(patches), -1)
    x = _linear(state, "vision_model.embeddings.patch_embedding", patches) + positions
    x = _tower(state, "vision_model", vision, x)
    return _norm(state, "vision_model.post_layernorm", x, vision.layer_norm_eps)


def _pooled(state: State, name: str, config: Any, query: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    weights = np.split(state[f"{name}.attention.in_proj_weight"], 3)
    biases = np.split(state[f"{name}.attention.in_proj_bias"], 3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, tokens, tokens), weights, biases, strict=True))
    out = _linear(state, f"{name}.attention.out_proj", _attend(q, k, v, config.num_attention_heads))
    return out + _mlp(state, f"{name}.mlp", _norm(state, f"{name}.layernorm", out, config.layer_norm_eps))


def image_vector(state: State, config: Any, tokens: np.ndarray) -> np.ndarray:
    """(D,) by the learned probe."""
    return _pooled(state, "vision_model.head", config.vision_config, state["vision_model.head.probe"][0], tokens)[0]


def dense(state: State, config: Any, tokens: np.ndarray) -> np.ndarray:
    """(h w, D): each token asks all of them."""
    return _pooled(state, "dense_feature_head", config.vision_config, tokens, tokens)


def regions(grid: np.ndarray, shape: tuple[int, int], image_hw: tuple[int, int], boxes: np.ndarray) -> np.ndarray:
    """(K, D) of (K, 4) boxes in pixels of the photo, of (h w, D) dense vectors."""
    (rows, columns), (height, width) = shape, image_hw
    cells = (boxes / np.array([width, height] * 2) * np.array([columns, rows] * 2)).astype(np.float32)
    maps = grid.T.reshape(-1, rows, columns)
    return np.stack([pool(maps, box)[:, 0, 0] for box in cells.astype(np.float64)])


def text_vector(state: State, config: Any, ids: np.ndarray, walk: str) -> np.ndarray:
    """(D,) of (T,) ids, read at the last of them."""
    text, name = config.text_config, "text_model.embeddings"
    tables = {
        end: state[f"{name}.position_embedding{end}.weight"] for end in (("_ori", "_res") if walk == "long" else ("",))
    }
    positions = [
        tables[("_ori" if t < text.keep_len else "_res") if walk == "long" else ""][t] for t in range(len(ids))
    ]
    x = _tower(state, "text_model", text, state[f"{name}.token_embedding.weight"][ids] + np.array(positions))
    last = _norm(state, "text_model.final_layer_norm", x[-1:], text.layer_norm_eps)
    heads = {"short": "text_model.head", "box": "boxtext_head", "long": "longtext_head"}
    return _linear(state, heads[walk], last)[0]
