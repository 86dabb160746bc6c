"""What a model without trained parameters needs to live under MMEngine's runner."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["PlaceholderParameter"]


class PlaceholderParameter(nn.Module):
    """One scalar that asks for a gradient and never gets one.

    `DistributedDataParallel` refuses a model without trainable parameters. The scalar is no part of a checkpoint:
    it is left out on saving and not missed on loading.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.zeros(()))

    @property
    def device(self) -> torch.device:
        """Where the model was moved."""
        return self.scalar.device

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Save nothing."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Miss nothing."""
