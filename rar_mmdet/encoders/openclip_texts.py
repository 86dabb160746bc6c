"""Many texts through a causal text tower of open_clip: what texts begin with alike is computed once.

Prompts are templates filled with names, so most of their tokens repeat: of 1,203 names in 80 templates, "a photo of a"
is the beginning of thousands. In a causal tower a token sees only what comes before it, so keys and values of a
beginning serve all texts that have it, and the text's vector, read at its end token, is the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

__all__ = ["by_beginning", "can_share", "encode_shared", "parts_of"]

BEGINNING_COLUMNS = 512  # tokens of beginnings whose keys and values are held at a time: 25 MB for ViT-B/16 (ours)


class _Cache(NamedTuple):
    """Keys and values of G beginnings of up to P tokens, one pair for each block."""

    layers: list[tuple[Tensor, Tensor]]  # (G, H, P, W / H) each
    lengths: Tensor  # (G,) tokens of each


def can_share(tower: Any) -> bool:
    """Whether all blocks of a text tower are open_clip's plain ones, whose keys and values are computed here."""
    from open_clip.transformer import ResidualAttentionBlock

    return all(
        type(block) is ResidualAttentionBlock
        and block.attn.in_proj_weight is not None
        and not hasattr(block, "ln_1_kv")
        for block in tower.transformer.resblocks
    )


def encode_shared(tower: Any, tokens: Tensor, lengths: Tensor, batch_size: int) -> Tensor:
    """(N, D) features of texts, not normalised.

    Args:
        tower: a causal text tower of open_clip, pooled at its end token, see `can_share`.
        tokens: (N, L) int64 ids on the tower's device.
        lengths: (N,) int64 tokens of each text up to its end token.
        batch_size: texts per forward pass.
    """
    rows = [tuple(ids[:length]) for ids, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    out: list[tuple[Tensor, Tensor]] = []
    for beginnings, members in parts_of(by_beginning(rows)):
        cache = _read_beginnings(tower, beginnings, tokens)
        own = torch.tensor([row for group in members for row in group], device=tokens.device)
        group = torch.tensor([g for g, rows_of in enumerate(members) for _ in rows_of], device=tokens.device)
        rest = lengths.to(tokens.device)[own] - cache.lengths[group]
        for batch in rest.argsort(stable=True).split(batch_size):
            out.append((own[batch], _finish(tower, cache, group[batch], tokens[own[batch]], rest[batch])))
    features = torch.cat([vectors for _, vectors in out])
    return torch.empty_like(features).index_copy_(0, torch.cat([index for index, _ in out]), features)


def by_beginning(rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Rows by the beginning, short of the end token, that spares most: its length times the share of those it is read
    for without being computed."""
    counts = Counter(row[:k] for row in rows for k in range(1, len(row)))
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        best = max(range(1, len(row)), key=lambda k: k * (1 - 1 / counts[row[:k]]))
        groups[row[:best]].append(index)
    return groups


def parts_of(
    groups: dict[tuple[int, ...], list[int]],
) -> Iterator[tuple[list[tuple[int, ...]], list[list[int]]]]:
    """Beginnings and their rows, as many at a time as `BEGINNING_COLUMNS` allows."""
    part: list[tuple[int, ...]] = []
    for beginning in sorted(groups, key=len):
        if part and (len(part) + 1) * len(beginning) > BEGINNING_COLUMNS:
            yield part, [groups[key] for key in part]
            part = []
        part.append(beginning)
    if part:
        yield part, [groups[key] for key in part]


def _read_beginnings(tower: Any, beginnings: list[tuple[int, ...]], like: Tensor) -> _Cache:
    width = max(map(len, beginnings))
    # Padding comes after, where nothing before looks at it.
    ids = like.new_tensor([[*ids, *[0] * (width - len(ids))] for ids in beginnings])
    layers: list[tuple[Tensor, Tensor]] = []
    causal = torch.ones((width, width), dtype=torch.bool, device=like.device).tril()
    _blocks(tower, _embedded(tower, ids, torch.arange(width, device=like.device)), causal, keep=layers)
    return _Cache(layers, torch.tensor([len(ids) for ids in beginnings], device=like.device))


def _finish(tower: Any, cache: _Cache, group: Tensor, tokens: Tensor, rest: Tensor) -> Tensor:
    """(B, D): the last `rest` tokens (B,) of each of `tokens` (B, L), behind the beginning of its group (B,)."""
    device, width = tokens.device, int(rest.max())
    before = cache.lengths[group]
    own = torch.arange(width, device=device)
    places = (before[:, None] + own).clamp_max(tokens.shape[1] - 1)
    sees_before = torch.arange(int(cache.lengths.max()), device=device) < before[:, None]  # (B, P)
    sees_own = own <= own[:, None]
    mask = torch.cat(
        [sees_before[:, None].expand(-1, width, -1), sees_own.expand(len(tokens), -1, -1)], dim=2
    )  # (B, S, P + S)
    past = [(keys[group], values[group]) for keys, values in cache.layers]
    x = _blocks(tower, _embedded(tower, tokens.gather(1, places), places), mask[:, None], past=past)
    x = tower.ln_final(x)[torch.arange(len(tokens), device=device), rest - 1]
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _embedded(tower: Any, ids: Tensor, places: Tensor) -> Tensor:
    dtype = tower.transformer.get_cast_dtype()
    return tower.token_embedding(ids).to(dtype) + tower.positional_embedding[places].to(dtype)


def _blocks(
    tower: Any,
    x: Tensor,
    mask: Tensor,
    past: Sequence[tuple[Tensor, Tensor]] | None = None,
    keep: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """(B, S, W) through all blocks; keys and values of `past` stand before their own, which `keep` collects."""
    for layer, block in enumerate(tower.transformer.resblocks):
        attn = block.attn
        projected = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = projected.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if keep is not None:
            keep.append((key, value))
        if past is not None:
            key, value = torch.cat([past[layer][0], key], dim=2), torch.cat([past[layer][1], value], dim=2)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + block.ls_1(attn.out_proj(seen.transpose(1, 2).flatten(2)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x
