"""Retrieval as RAR's release does it, for parity alone: labels of the 100 nearest photos, repeated as they come.

Elsewhere a shortlist holds each class once. From RAR's repository: Few_shot/build_memory.ipynb, cells 5, 6 (the list;
its index is near exact at this size, ours exact), and CLIP-Cls/eval.py, lines 136 to 158 (what is counted).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.classification.dataset import Example
from rar_mmdet.memory.few_shot import nearest_labels
from rar_mmdet.records import NEVER

__all__ = ["DEPTH", "RELEASED", "read_places", "share_anywhere", "write_lists"]

RELEASED = "released"  # the row
DEPTH = 100  # photos in a list


def write_lists(file: Path, examples: Sequence[Example], queries: Tensor, exemplars: Tensor, labels: Tensor) -> None:
    """One line of JSON for each photo: image, truth, and the labels of its nearest exemplars; the file is whole or not.

    Args:
        file: to write.
        examples: Q photos.
        queries: (Q, D) unit vectors of them.
        exemplars: (N, D) unit vectors.
        labels: (N,) int64.
    """
    lists = nearest_labels(queries, exemplars, labels, DEPTH).tolist()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as stream:
        for example, found in zip(examples, lists, strict=True):
            stream.write(json.dumps({"image": example.id, "truth": example.label, "labels": found}) + "\n")
    os.replace(part, file)


def read_places(file: Path) -> NDArray[np.int64]:
    """(Q,) the place of the first photo of the true class in each list, 0 being first; `NEVER` where there is none.

    The place counts photos: with 16 exemplars a class the second class may come at place 16. Place 0 is right by 1-NN.
    """
    places = []
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            found = json.loads(line)
            truth, labels = found["truth"], found["labels"]
            places.append(labels.index(truth) if truth in labels else NEVER)
    return np.array(places, dtype=np.int64)


def share_anywhere(places: NDArray[np.int64]) -> float:
    """What the release's evaluator prints as top-k, whatever k is: the share of lists with the truth anywhere."""
    return float(np.mean(places < NEVER))
