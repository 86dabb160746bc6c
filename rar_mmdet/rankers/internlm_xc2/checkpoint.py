"""A checkpoint folder: is it this model, is it whole, did all of it arrive."""

import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rar_mmdet.errors import MissingAssetError, RankerLoadError

__all__ = [
    "HARMLESS_KEYS",
    "MANIFEST",
    "PUBLISHED_TO_NATIVE",
    "check_folder",
    "check_keys",
    "file_sha256",
    "is_harmless",
    "read_manifest",
    "weight_files",
]

# The linears with Partial LoRA keep their own weight in `.base`, so that quantisers meet a plain linear.
PUBLISHED_TO_NATIVE = {
    r"(attention\.(?:wqkv|wo)|feed_forward\.w[123])\.weight": r"\1.base.weight",
    r"(attention\.(?:wqkv|wo))\.bias": r"\1.base.bias",
}
# Constants that older transformers stored as buffers; they are computed here.
HARMLESS_KEYS = [r"embeddings\.position_ids$", r"rotary_emb\.inv_freq$"]
MANIFEST = "rar_manifest.json"  # written by tools/convert_xc2.py: size and sha256 of each file
VERIFY_VARIABLE = "RAR_XC2_VERIFY"  # 'hash': also compare the sha256 at loading
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")

_WRONG_MODEL = (
    "Only InternLM-XComposer2-VL (one image of fixed side) is implemented here. Download internlm-xcomposer2-vl-7b, or "
    "use another ranker: configs/rar_lvis_qwen.py (native), configs/rar_lvis_server.py (any OpenAI-compatible server)."
)
# A module only these generations ship, and what they call their tiling in it (read as text, never run).
_TILING_FILE = "ixc_utils.py"
_TILING = {"Image_transform": "InternLM-XComposer-2.5", "HD_transform": "InternLM-XComposer2-4KHD"}
_TILING_KEYS = ("plora_glb_GN", "plora_sub_GN")


def check_folder(folder: str | os.PathLike[str] | None) -> None:
    """Refuse a local folder of another model, or with missing or damaged shards, before anything large is read.

    Hub ids are left to transformers, which verifies what it downloads.

    Raises:
        MissingAssetError: No weights, or a shard that the index names is not there.
        RankerLoadError: Another generation of the model, a truncated shard, or (when the environment says
            `RAR_XC2_VERIFY=hash`) a shard whose sha256 is not the manifest's.
    """
    if folder is None or not Path(folder).is_dir():
        return
    folder = Path(folder)
    _refuse_other_generation(folder)
    files = weight_files(folder)
    manifest = read_manifest(folder)
    for path in files:
        _check_whole(path, manifest.get(path.name, {}))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: safetensors before `.bin`, sharded or not; each exists.

    Raises:
        MissingAssetError: There are none, or the index names one that is not there.
    """
    for single, index in zip(_SINGLES, _INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            names = sorted(set(_read_json(folder / index)["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise MissingAssetError(
                    f"{folder} lacks {len(missing)} of {len(names)} shards named by {index}: {', '.join(missing)}. "
                    "Download them again into this folder."
                )
            return [folder / name for name in names]
    raise MissingAssetError(
        f"{folder} holds no weights: expected one of {', '.join((*_SINGLES, *_INDEXES))}. docs/internlm_xc2.md says "
        "what to download and where it goes."
    )


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: {"bytes": size, "sha256": digest}} as the converter wrote it; empty for an unconverted folder."""
    path = folder / MANIFEST
    return _read_json(path)["files"] if path.is_file() else {}


def is_harmless(key: str) -> bool:
    """Whether a stored tensor is one of the constants in HARMLESS_KEYS."""
    return any(re.search(pattern, key) for pattern in HARMLESS_KEYS)


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_keys(source: Any, info: Mapping[str, Iterable[Any]]) -> None:
    """Stop unless every tensor of the model was in the checkpoint, in its shape, and no other.

    Args:
        source: Folder or hub id, for the message.
        info: What transformers reports of a loading.

    Raises:
        RankerLoadError: Naming the tensors.
    """
    unexpected = sorted(info["unexpected_keys"])
    if any(key.endswith(_TILING_KEYS) for key in unexpected):
        raise RankerLoadError(
            f"{source} is a tiling model (InternLM-XComposer2-4KHD or 2.5: it has {_TILING_KEYS[0]}). {_WRONG_MODEL}"
        )
    problems = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (
            ("missing", sorted(info["missing_keys"])),
            ("unexpected", unexpected),
            ("of another shape", [_shape_problem(item) for item in info["mismatched_keys"]]),
        )
        if names
    ]
    if problems:
        raise RankerLoadError(
            f"{source} does not hold exactly the tensors of its config.json: {'; '.join(problems)}. A model with such "
            "gaps would answer at random. Compare config.json with the checkpoint it came with, or download both again."
        )


def _shape_problem(item: Any) -> str:
    name, stored, expected = item
    return f"{name}: stored {tuple(stored)}, config says {tuple(expected)}"


def _refuse_other_generation(folder: Path) -> None:
    tiling = folder / _TILING_FILE
    if tiling.is_file():
        text = tiling.read_text(encoding="utf-8", errors="replace")
        name = next((model for mark, model in _TILING.items() if f"def {mark}" in text), "a tiling InternLM-XComposer2")
        raise RankerLoadError(f"{folder} holds {name}, which cuts images into tiles. {_WRONG_MODEL}")
    for index in _INDEXES:
        if (folder / index).is_file() and set(_TILING_KEYS) & set(_read_json(folder / index)["weight_map"]):
            raise RankerLoadError(f"{folder} holds InternLM-XComposer2-4KHD or 2.5 (tiled images). {_WRONG_MODEL}")


def _check_whole(path: Path, expected: Mapping[str, Any]) -> None:
    """Size against the file's own header (and the manifest's entry); sha256 where asked for."""
    size = path.stat().st_size
    needed = expected.get("bytes") or (_safetensors_size(path) if path.suffix == ".safetensors" else None)
    damaged = (
        size != needed if needed is not None else not zipfile.is_zipfile(path)  # a cut .bin loses its zip directory
    )
    if damaged:
        raise RankerLoadError(
            f"{path} is truncated or damaged: {size} bytes"
            + (f", expected {needed}" if needed is not None else ", and no complete zip archive")
            + ". Download this shard again."
        )
    if os.environ.get(VERIFY_VARIABLE) == "hash" and "sha256" in expected:
        digest = file_sha256(path)
        if digest != expected["sha256"]:
            raise RankerLoadError(
                f"{path} has sha256 {digest}, but {MANIFEST} says {expected['sha256']}. The file was changed or "
                "damaged after conversion: run tools/convert_xc2.py again."
            )


def _safetensors_size(path: Path) -> int | None:
    """Bytes the file must have by its own header: 8 + header + data."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return 8
        (length,) = struct.unpack("<Q", prefix)
        header = file.read(min(length, 100 * 2**20))
    try:
        entries = json.loads(header)
    except ValueError:  # the header itself is cut, or this is no safetensors file
        return 8 + length
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RankerLoadError(f"{path} is not valid JSON ({error}). Download it again.") from error
