"""A word when a detector predicts with the weights it was born with."""

from __future__ import annotations

import functools
import logging

from mmengine.logging import print_log
from torch import nn

__all__ = ["WeightsCheck"]


class WeightsCheck:
    """Notices whether a module's weights were ever loaded. Make it after the module's layers.

    A detector without its checkpoint runs like any other and finds nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        self.loaded = False
        module.register_load_state_dict_pre_hook(self._note)

    def _note(self, *_: object) -> None:
        self.loaded = True

    def warn(self, model: str) -> None:
        """Say, once in a process, that no weights were loaded."""
        if not self.loaded:
            _warn(model)


@functools.cache
def _warn(model: str) -> None:
    print_log(
        f"NO CHECKPOINT WAS LOADED into {model}: its weights are random, and so are the boxes it finds. Give the "
        "detector's checkpoint: tools/test.py CONFIG CHECKPOINT, load_from in the config, or weights=... of "
        "DetInferencer",
        logger="current",
        level=logging.WARNING,
    )
