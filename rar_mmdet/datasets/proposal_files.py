"""Proposal files, `{"folder/photo.jpg": {"bboxes": (R, 4), "scores": (R,)}}`: JSON, or a pickle of arrays alone."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.fileio import get
from mmengine.structures import InstanceData

from rar_mmdet.errors import InvalidBoxError, MissingAssetError
from rar_mmdet.files.text import parse_json
from rar_mmdet.scoring.box_checks import are_fractions

__all__ = ["read_proposals"]

BACKWARD_SHARE = 0.2  # of the boxes (ours): more than a detector's odd ones
_ARRAYS = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")
# What plain data is made of; modules also under the names that old protocols write.
_PLAIN = {
    *((module, name) for module in ("builtins", "__builtin__") for name in ("object", "set", "slice", "bytes")),
    *((module, "_reconstructor") for module in ("copyreg", "copy_reg")),
    ("_codecs", "encode"),
}
_WHAT = "a proposal file is a dictionary from 'folder/photo.jpg' to its bboxes (R, 4) xyxy and scores (R,)"


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and MMEngine's `InstanceData`, as `DumpProposals` writes them, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _ARRAYS:
            return super().find_class(module, name)
        if (module, name) == (InstanceData.__module__, InstanceData.__name__) or (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_proposals(path: str, backend_args: dict | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Boxes (R, 4) float32 xyxy in original pixels, and scores (R,) where the file has them, by image.

    Raises:
        MissingAssetError: there is no such file.
        InvalidBoxError: it holds something else, and the message names the image; or its boxes are in 0..1 or x, y,
            width, height.
    """
    where = f"proposal file {path}"
    try:
        data = get(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise MissingAssetError(f"{where} does not exist") from error
    content = parse_json(data, where, InvalidBoxError) if path.endswith(".json") else _unpickle(data, where)
    if not isinstance(content, Mapping):
        raise InvalidBoxError(f"{where} holds a {type(content).__name__}; {_WHAT}")
    proposals = {str(image): _checked(found, f"{where}, {image!r}") for image, found in content.items()}
    _check_values(proposals, where)
    return proposals


def _check_values(proposals: Mapping[str, Mapping[str, np.ndarray]], where: str) -> None:
    """Boxes in shares of the photo, and x, y, width, height, are told by their values."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found["bboxes"] for found in proposals.values())])
    if are_fractions(boxes):
        raise InvalidBoxError(
            f"{where}: all {len(boxes)} boxes lie within 0 and 1, such as {boxes[0].tolist()}; expected pixels: "
            "multiply x by the width of the photo and y by its height"
        )
    backward = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if backward.sum() > BACKWARD_SHARE * len(boxes):
        raise InvalidBoxError(
            f"{where}: {backward.sum()} of {len(boxes)} boxes end before they begin, such as "
            f"{boxes[backward.argmax()].tolist()}; expected x1, y1, x2, y2. Were x, y, width, height written?"
        )


def _unpickle(data: bytes, where: str) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError, IndexError, TypeError) as error:
        raise InvalidBoxError(
            f"{where} is refused: {error}. A pickle can run any code, so arrays are all it may hold. Write it with "
            "MMDetection's DumpProposals, or as JSON"
        ) from error


def _checked(found: Any, where: str) -> dict[str, np.ndarray]:
    if not isinstance(found, Mapping | InstanceData) or "bboxes" not in found:
        raise InvalidBoxError(f"{where} has no `bboxes`; {_WHAT}")
    try:
        boxes = np.asarray(found["bboxes"], dtype=np.float32)
        scores = np.asarray(found["scores"], dtype=np.float32) if "scores" in found else None
    except (ValueError, TypeError) as error:
        raise InvalidBoxError(f"{where} holds what are no numbers: {error}; {_WHAT}") from error
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or (scores is not None and scores.shape != (len(boxes),)):
        shape = None if scores is None else scores.shape
        raise InvalidBoxError(f"{where} has bboxes {boxes.shape} and scores {shape}; {_WHAT}")
    return {"bboxes": boxes} if scores is None else {"bboxes": boxes, "scores": scores}
