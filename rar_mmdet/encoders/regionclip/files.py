"""RegionCLIP's files: tensors are read, and nothing else is unpickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.errors import EncoderLoadError, MissingAssetError

__all__ = ["IMAGE_PREFIX", "TEXT_PREFIX", "read_class_embeddings", "read_tensors"]

# Other prefixes lie in the files too and are not used with given boxes: `teacher_backbone.`, `offline_backbone.` and
# `offline_proposal_generator.` of training, `roi_heads.` of fine-tuned files.
IMAGE_PREFIX, TEXT_PREFIX = "backbone.", "lang_encoder."


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of image and text network under their published names, from a `.pth` or a `.safetensors` file.

    Raises:
        MissingAssetError: there is no such file.
        EncoderLoadError: it is damaged, or holds other things than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingAssetError(
            f"RegionCLIP checkpoint {path.absolute()} is not there; put it there, or correct the path"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load(path)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise EncoderLoadError(
            f"{path} holds a {type(content).__name__}; expected a checkpoint of RegionCLIP, a dict of tensors under "
            "'model', such as regionclip_pretrained-cc_rn50.pth"
        )
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith((IMAGE_PREFIX, TEXT_PREFIX)) and isinstance(value, Tensor)
    }


def read_class_embeddings(path: str | Path) -> Tensor:
    """(C, D) float32 class embeddings, not normalised, such as `lvis_1203_cls_emb.pth`.

    Raises:
        MissingAssetError: there is no such file.
        EncoderLoadError: it holds something else than one tensor (C, D).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingAssetError(
            f"class embeddings {path.absolute()} are not there; put them there, or correct the path"
        )
    content = _load(path)
    if not isinstance(content, Tensor) or content.ndim != 2 or not content.is_floating_point():
        raise EncoderLoadError(
            f"{path} must be one tensor (classes, dimension) of floats, got {type(content).__name__}"
        )
    return content.float()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of torch's text is advice to unpickle it all the same.
        found = re.search(r"GLOBAL \S+", str(error))
        raise EncoderLoadError(
            f"{path} holds more than tensors, or is no file of torch.save{f' ({found[0]})' if found else ''}. Only "
            "tensors are read, because a pickle may run any program; get the published file, or save it as .safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise EncoderLoadError(f"{path} is damaged: {error}. Download it again") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = [name for name in file.keys() if name.startswith((IMAGE_PREFIX, TEXT_PREFIX))]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise EncoderLoadError(f"{path} is damaged: {error}. Download it again") from error
