"""One folder per memory on disk: manifest.json, vectors.safetensors and, with an approximate index, index.faiss."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import rar_mmdet
from rar_mmdet.errors import MemoryMismatchError, MissingAssetError
from rar_mmdet.files.vocabulary import vocabulary_hash
from rar_mmdet.memory.entries import Entries, EntryKind

if TYPE_CHECKING:
    from rar_mmdet.memory.memory import CategoryMemory, MemoryInfo

__all__ = ["MANIFEST", "SCHEMA_VERSION", "StoredMemory", "load", "save"]

FORMAT, SCHEMA_VERSION = "rar_mmdet memory", 1
MANIFEST, VECTORS, INDEX = "manifest.json", "vectors.safetensors", "index.faiss"


@dataclass(frozen=True)
class StoredMemory:
    """A folder's content."""

    entries: Entries
    category_names: tuple[str, ...]
    info: MemoryInfo
    index: dict[str, Any] | None  # what index.faiss holds
    index_file: Path | None


class PackedStrings(Sequence[str]):
    """Strings kept as one run of UTF-8 bytes and decoded one at a time, so that millions cost no start-up time."""

    def __init__(self, utf8: Tensor, offsets: Tensor) -> None:
        self._utf8, self._offsets = utf8, offsets

    @staticmethod
    def pack(strings: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(bytes,) uint8 and (E + 1,) int64 offsets."""
        blobs = [text.encode() for text in strings]
        offsets = np.concatenate([[0], np.cumsum([len(blob) for blob in blobs], dtype=np.int64)]).astype(np.int64)
        joined = bytearray(b"".join(blobs))
        utf8 = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
        return utf8, torch.from_numpy(offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = self._offsets[index % len(self)], self._offsets[index % len(self) + 1]
        return self._utf8[start:end].numpy().tobytes().decode()


def save(memory: CategoryMemory, folder: Path) -> Path:
    """Write `memory` beside `folder` and rename it into place, so that a killed writer leaves the old one usable."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    fresh.mkdir()
    try:
        _write(memory, fresh)
        backup = _backup_of(folder)
        if folder.exists():
            shutil.rmtree(backup, ignore_errors=True)
            os.rename(folder, backup)  # `load` reads the backup if we are killed between these two lines
        os.rename(fresh, folder)
        shutil.rmtree(backup, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def load(folder: Path, *, verify: bool = True) -> StoredMemory:
    """Open a memory for reading; any number of processes may.

    Args:
        folder: what `save` wrote.
        verify: compare every file with its hash in the manifest.

    Raises:
        MissingAssetError: there is no memory.
        MemoryMismatchError: a file is damaged, or of a schema this version does not read.
    """
    from rar_mmdet.memory.memory import MemoryInfo

    if not folder.exists() and _backup_of(folder.absolute()).exists():
        folder = _backup_of(folder.absolute())
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise MemoryMismatchError(f"{path} is missing although the manifest names it; build the memory anew")
        if verify and _sha256(path) != expected:
            raise MemoryMismatchError(f"{path} is damaged: its SHA-256 is not the manifest's; build the memory anew")
    try:
        with safe_open(str(folder / VECTORS), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise MemoryMismatchError(f"{folder / VECTORS} is not readable ({error}); build the memory anew") from error
    sources = PackedStrings(tensors["sources_utf8"], tensors["source_offsets"])
    info = {**manifest["info"], "templates": tuple(manifest["info"]["templates"])}
    return StoredMemory(
        entries=Entries(tensors["vectors"], tensors["category_ids"], tensors["kinds"], sources),
        category_names=tuple(manifest["category_names"]),
        info=MemoryInfo(**info),
        index=manifest["index"],
        index_file=folder / INDEX if INDEX in manifest["files"] else None,
    )


def _write(memory: CategoryMemory, folder: Path) -> None:
    from rar_mmdet.memory.memory import index_key

    own = memory.entries
    utf8, offsets = PackedStrings.pack(own.sources)
    save_file(
        {
            "vectors": own.vectors.cpu().contiguous(),
            "category_ids": own.category_ids.cpu(),
            "kinds": own.kinds.cpu(),
            "sources_utf8": utf8,
            "source_offsets": offsets,
        },
        str(folder / VECTORS),
    )
    index = None
    if memory.faiss is not None and memory.index.is_approximate:  # 'Flat' is made from the vectors in no time
        memory.faiss.write(folder / INDEX)
        index = index_key(memory.index, memory.aggregation, memory.text_weight)
    texts = int((own.kinds == EntryKind.TEXT).sum())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "created_by": f"rar_mmdet {rar_mmdet.__version__}",
        "info": asdict(memory.info),
        "entries": {"text": texts, "image": len(own) - texts, "dim": memory.dim},
        "index": index,
        "names_sha256": vocabulary_hash(memory.category_names),
        "category_names": list(memory.category_names),
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    blank = json.dumps(manifest | {"sha256": ""}, indent=1, ensure_ascii=False).encode()
    digest = hashlib.sha256(blank).hexdigest()
    (folder / MANIFEST).write_bytes(_with_digest(blank, "", digest))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingAssetError(
            f"no memory in {folder.absolute()} ({MANIFEST} is not there); tools/build_memory.py makes one"
        )
    raw = path.read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(raw.decode())
        digest = manifest["sha256"]
        intact = hashlib.sha256(_with_digest(raw, digest, "")).hexdigest() == digest
    except (ValueError, KeyError, TypeError) as error:
        raise MemoryMismatchError(f"{path} is damaged or no manifest of a memory ({error}); build it anew") from error
    if not intact or manifest.get("format") != FORMAT:
        raise MemoryMismatchError(f"{path} is damaged: its SHA-256 does not fit its content; build the memory anew")
    version = manifest["schema_version"]
    if version != SCHEMA_VERSION:
        advice = "a newer rar_mmdet wrote it, upgrade" if version > SCHEMA_VERSION else "build the memory anew"
        raise MemoryMismatchError(
            f"{path} is of schema {version}, written by {manifest['created_by']}; this version reads schema "
            f"{SCHEMA_VERSION}: {advice}"
        )
    return manifest


def _with_digest(manifest: bytes, old: str, new: str) -> bytes:
    """The manifest's bytes with its own hash exchanged; the hash is taken with none in its place."""
    return f'"sha256": "{new}"'.encode().join(manifest.rsplit(f'"sha256": "{old}"'.encode(), 1))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _backup_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
