"""What a detector's checkpoint may hold beside tensors.

MMEngine's Runner saves its log buffers into every checkpoint. Since torch 2.6 `torch.load` unpickles tensors and
classes it was told of, and nothing else, because a pickle can run any code. MMEngine 0.10 does not tell it, so its own
checkpoints do not load. The classes below are data: none of them runs anything when it is unpickled.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = ["allow_runner_checkpoints"]

_STATISTICS = ("min", "max", "mean", "current", "statistics")
_DTYPES = (
    *(np.dtypes.BoolDType, np.dtypes.Int32DType, np.dtypes.Int64DType, np.dtypes.UInt8DType),
    *(np.dtypes.Float16DType, np.dtypes.Float32DType, np.dtypes.Float64DType),
)


def _statistic_of_a_buffer(owner: Any, name: str) -> Any:
    """`getattr` as a pickled `HistoryBuffer` calls it, for its statistics; nothing else is looked up."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(f"it asks for {name!r} of {owner!r}, and only statistics of a HistoryBuffer are known.")
    return getattr(HistoryBuffer, name)


def allow_runner_checkpoints() -> None:
    """Tell `torch.load` of the classes in checkpoints of MMEngine's Runner; a second call changes nothing."""
    makers: tuple[Any, Any] = np.ndarray(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    # NumPy 2 moved the module, and checkpoints name it by either path.
    names = [(make, f"numpy.{core}.multiarray.{make.__name__}") for make in makers for core in ("core", "_core")]
    torch.serialization.add_safe_globals(
        [HistoryBuffer, np.ndarray, np.dtype, *_DTYPES, *names, (_statistic_of_a_buffer, "builtins.getattr")]
    )
