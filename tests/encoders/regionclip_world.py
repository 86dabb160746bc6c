"""open_clip's networks under RegionCLIP's published names: small, of random weights, and an oracle."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet

DIM, WIDTH = 24, 8
Networks = tuple[ModifiedResNet, open_clip.CLIP]


def build_networks(table_side: int) -> Networks:
    """Image tower with random statistics, and text tower of CLIP's vocabulary.

    Args:
        table_side: of the pooling's position table: 7 as RN50, 9 as RN50x4.
    """
    torch.manual_seed(table_side)
    resnet = ModifiedResNet([1, 2, 1, 2], DIM, heads=WIDTH * 32 // 64, image_size=32 * table_side, width=WIDTH).eval()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    vision_cfg = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = open_clip.CLIP(embed_dim=DIM, vision_cfg=vision_cfg, text_cfg=text_cfg, quick_gelu=True).eval()
    return resnet.requires_grad_(False), text.requires_grad_(False)


def published_names(resnet: ModifiedResNet, text: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """A checkpoint as published ones are: other networks beside, whose names end as ours do."""
    state = {f"backbone.{k}": v for k, v in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
    if text is not None:
        names = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        own = {k: v for k, v in text.state_dict().items() if k.startswith(names)}
        state |= {f"lang_encoder.{k}": v for k, v in own.items()}
    state["teacher_backbone.conv1.weight"] = torch.full((4, 3, 3, 3), 7.0)
    state["offline_backbone.attnpool.positional_embedding"] = torch.zeros(3, 3)
    return {name: tensor.clone() for name, tensor in state.items()}


def write_checkpoint(path: Path, networks: Networks) -> Path:
    """As a published file: the tensors under 'model', and what training left."""
    torch.save({"model": published_names(*networks), "iteration": 3}, path)
    return path
