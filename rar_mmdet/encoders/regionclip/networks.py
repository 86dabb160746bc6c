"""The networks of RegionCLIP: CLIP's modified ResNet, cut where boxes are pooled, and CLIP's text transformer.

Written from the description of both (CLIP, arXiv 2103.00020, sections 2.4 and F; RegionCLIP, arXiv 2112.09106, section
3.2), under the published names of the tensors. All sizes are read from the tensors. Shape letters: R boxes, T texts,
L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

__all__ = ["CHANNELS_PER_HEAD", "ImageNetwork", "TextNetwork"]

CHANNELS_PER_HEAD = 64  # of every attention of CLIP
Sizes = Mapping[str, tuple[int, ...]]  # tensor name -> shape


def _num_blocks(sizes: Sizes, prefix: str) -> int:
    """How many numbered blocks there are under a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in sizes if name.startswith(prefix)})


class _FrozenNorm(nn.Module):
    """Batch norm with the statistics of training; the published files hold no count of batches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class _Block(nn.Module):
    """A bottleneck that strides by average pooling: after its second convolution, and before the shortcut's."""

    def __init__(self, sizes: Sizes, prefix: str, stride: int) -> None:
        super().__init__()
        width, channels = sizes[f"{prefix}conv1.weight"][:2]
        out = sizes[f"{prefix}conv3.weight"][0]
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), _FrozenNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), _FrozenNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), _FrozenNorm(out)
        self.downsample: nn.ModuleDict | None = None
        if f"{prefix}downsample.0.weight" in sizes:
            self.downsample = nn.ModuleDict({"0": nn.Conv2d(channels, out, 1, bias=False), "1": _FrozenNorm(out)})

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self._pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](self._pool(x)))
        return F.relu(x + y)

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class _AttentionPool(nn.Module):
    """The mean of a map asks the map, and itself (CLIP's QKV pooling)."""

    def __init__(self, sizes: Sizes, prefix: str) -> None:
        super().__init__()
        tokens, width = sizes[f"{prefix}positional_embedding"]
        self.heads = width // CHANNELS_PER_HEAD
        self.side = round((tokens - 1) ** 0.5)
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, sizes[f"{prefix}c_proj.weight"][0])

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, n, n) -> (R, D)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        parts = (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class ImageNetwork(nn.Module):
    """`features` of a photo with stride 16, and `pool`, what the last stage makes of each box of them."""

    stride = 16

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels = 3
        for i in (1, 2, 3):
            out = sizes[f"conv{i}.weight"][0]
            setattr(self, f"conv{i}", nn.Conv2d(channels, out, 3, 2 if i == 1 else 1, padding=1, bias=False))
            setattr(self, f"bn{i}", _FrozenNorm(out))
            channels = out
        for i in (1, 2, 3, 4):
            count = _num_blocks(sizes, f"layer{i}.")
            strides = [1 if i == 1 else 2, *[1] * (count - 1)]
            blocks = [_Block(sizes, f"layer{i}.{block}.", stride) for block, stride in enumerate(strides)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.attnpool = _AttentionPool(sizes, "attnpool.")

    @property
    def box_side(self) -> int:
        """Side of the square map a box is read as: twice that of the pooling's table (14 for RN50, 18 for RN50x4)."""
        return 2 * self.attnpool.side

    def features(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) normalised pixels -> (1, C, H/16, W/16), the stage called res4."""
        x = pixels
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        x = F.avg_pool2d(x, 2)
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
        return x

    def read_boxes(self, features: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """(R, C, S, S) maps of boxes in pixels of the network's input: RoIAlign, a sample for each cell of a bin."""
        from torchvision.ops import roi_align

        return roi_align(
            features, [boxes_xyxy], self.box_side, spatial_scale=1 / self.stride, sampling_ratio=0, aligned=True
        )

    def pool(self, box_maps: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, D): the last stage, then attention pooling."""
        return self.attnpool(self.get_submodule("layer4")(box_maps))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // CHANNELS_PER_HEAD
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class _TextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), _Attention(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))  # QuickGELU, as OpenAI's CLIP


class TextNetwork(nn.Module):
    """CLIP's causal text tower; a text's vector is read at its largest id, which is the end token's."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        vocabulary, width = sizes["token_embedding.weight"]
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(*sizes["positional_embedding"]))
        blocks = [_TextBlock(width) for _ in range(_num_blocks(sizes, "transformer.resblocks."))]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(*sizes["text_projection"]))

    def forward(self, ids: Tensor) -> Tensor:
        """(T, L) ids -> (T, D); what comes after the last end token has no say, so those columns are left out."""
        ends = ids.argmax(dim=1)
        length = int(ends.max()) + 1 if len(ids) else 0
        x = self.token_embedding(ids[:, :length]) + self.positional_embedding[:length]
        for block in self.transformer["resblocks"].children():
            x = block(x)
        return self.ln_final(x[torch.arange(len(ids), device=ids.device), ends]) @ self.text_projection
