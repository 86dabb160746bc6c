"""The vision tower of the demo ranker: a small convolutional network that `transformers` loads like any other tower.

No stock tower learns from scratch in minutes on a CPU (patch transformers do not get off the ground, see
demo/README.md), so the demo's LLaVA brings its own. Importing this module registers it with `AutoConfig` and
`AutoModel`; after that a LLaVA folder whose `vision_config.model_type` is `rar_tiny_vision` loads through
`AutoModelForImageTextToText` without remote code. The demo's configs name this file in `loading=dict(modules=[...])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["TinyVisionConfig", "TinyVisionModel"]


class TinyVisionConfig(PretrainedConfig):
    """Shape of the tower.

    Args:
        image_size: Side of the square input in pixels.
        widths: Channels after each stage; every stage halves the resolution. The last is the width of a visual token.
        depths: Residual blocks of each stage.
    """

    model_type = "rar_tiny_vision"

    def __init__(
        self,
        image_size: int = 64,
        widths: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (0, 1, 1, 1),
        **kwargs: Any,
    ):
        self.image_size = image_size
        self.widths = list(widths)
        self.depths = list(depths)
        self.num_channels = 3
        self.hidden_size = self.widths[-1]
        self.patch_size = 2 ** len(self.widths)  # side of the input square behind one visual token
        super().__init__(**kwargs)  # transformers' own protocol: the base class takes its common keys this way


class _Block(nn.Module):
    """conv-BN-ReLU-conv-BN with a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class TinyVisionModel(PreTrainedModel):
    """Pictures (B, 3, S, S) to a grid of visual tokens (B, (S / patch_size)^2, hidden_size), row by row."""

    config_class = TinyVisionConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: TinyVisionConfig):
        super().__init__(config)
        stages, before = [], config.num_channels
        for width, depth in zip(config.widths, config.depths, strict=True):
            down = [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            stages.append(nn.Sequential(*down, *(_Block(width) for _ in range(depth))))
            before = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(before)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """`hidden_states` is the tokens alone, so `vision_feature_layer=-1` selects them; other keywords do nothing."""
        grid = self.stages(pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last))
        tokens = self.norm(grid.flatten(2).transpose(1, 2))
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(TinyVisionConfig.model_type, TinyVisionConfig, exist_ok=True)
AutoModel.register(TinyVisionConfig, TinyVisionModel, exist_ok=True)
