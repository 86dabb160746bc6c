"""One folder per memory on disk: manifest.json and vectors.safetensors, for any number of readers and writers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import rar_mmdet
from rar_mmdet.errors import ConfigError, MemoryMismatchError, MissingAssetError
from rar_mmdet.files.vocabulary import vocabulary_hash
from rar_mmdet.memory.entries import Entries, EntryKind
from rar_mmdet.memory.memory import CategoryMemory, MemoryInfo

__all__ = ["MANIFEST", "SCHEMA_VERSION", "load_memory", "save_memory"]

FORMAT, SCHEMA_VERSION = "rar_mmdet memory", 1
MANIFEST, VECTORS = "manifest.json", "vectors.safetensors"
WAIT_FOR_WRITER_S = 10.0  # how long a reader that meets a writer tries again; exchanging a folder takes milliseconds
LEAST_TRIES = 20  # whatever the time: one may take minutes, with many vectors, a slow disk or a busy machine; ours
QUIET_TRIES = 3  # after so many failures with no writer in sight a memory is missing or damaged


@dataclass(frozen=True)
class StoredMemory:
    """A folder's content."""

    entries: Entries
    category_names: tuple[str, ...]
    info: MemoryInfo


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


def save_memory(memory: CategoryMemory, folder: str | Path) -> Path:
    """Write `memory` as one folder; an older one there is replaced. See `docs/memory.md`.

    It is written beside `folder` and renamed into place, so that a killed writer leaves the old one usable. Writers
    wait for one another; readers need not.

    Returns:
        The folder's absolute path.

    Raises:
        MemoryMismatchError: there is something else in that place.
        ConfigError: the place cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        _write(memory, fresh)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            backup = _backup_of(folder)
            if folder.exists():
                _check_replaceable(folder)
                shutil.rmtree(backup, ignore_errors=True)
                os.rename(folder, backup)  # readers take the backup if we are killed between these two lines
            os.rename(fresh, folder)
            shutil.rmtree(backup, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the memory cannot be written to {folder}: {error}. Give a folder that can be") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def load_memory(
    folder: str | Path,
    *,
    verify: bool = True,
    aggregation: str = "max",
    text_weight: float | None = None,
    temperature: float | None = None,
) -> CategoryMemory:
    """Open a saved memory; vectors stay in the file and are read as needed (mmap).

    Args:
        folder: what `save_memory` wrote.
        verify: compare every file with its hash in the manifest.
        aggregation: see `CategoryMemory`.
        text_weight: see `CategoryMemory`.
        temperature: see `CategoryMemory`.

    Raises:
        MissingAssetError: there is no memory.
        MemoryMismatchError: a file is damaged, or of a schema this version does not read.
    """
    stored = _read_while_others_write(Path(folder).expanduser().absolute(), verify)
    return CategoryMemory(
        stored.entries,
        stored.category_names,
        info=stored.info,
        aggregation=aggregation,
        text_weight=text_weight,
        temperature=temperature,
    )


def _read_while_others_write(folder: Path, verify: bool) -> StoredMemory:
    """Read the folder; again where a writer may have exchanged it meanwhile. Needs no right to write."""
    give_up, quiet, tried = time.monotonic() + WAIT_FOR_WRITER_S, 0, 0
    while True:
        tried += 1
        before = _state_of(folder)
        try:
            with _pinned(folder if folder.exists() else _backup_of(folder)) as pinned:
                return _read(pinned, folder, verify)
        except (MissingAssetError, MemoryMismatchError):
            # Clocks of disks are coarse and numbers of folders are used again: looking the same once proves little.
            quiet = quiet + 1 if _state_of(folder) == before else 0
            if quiet == QUIET_TRIES or (tried >= LEAST_TRIES and time.monotonic() > give_up):
                raise
        except OSError as error:
            raise MemoryMismatchError(f"{folder} cannot be read: {error.strerror or error}") from error
        time.sleep(0.01)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is no memory, such as a folder of photos given by mistake."""
    if not folder.is_dir() or (
        any(folder.iterdir()) and not (folder / MANIFEST).exists() and not (folder / VECTORS).exists()
    ):
        raise MemoryMismatchError(
            f"{folder} holds something else than a memory and is not replaced. Give another folder"
        )


@contextmanager
def _pinned(folder: Path) -> Iterator[Path]:
    """The folder by a name that stays its own when a writer puts another one in its place.

    Its files are opened one after the other, and one of them twice (safetensors and torch each open it); they must not
    be of two memories. Where the system has no such names, the folder itself.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield folder
        return
    try:
        pinned = Path(f"/proc/self/fd/{handle}")
        yield pinned if pinned.exists() else folder
    finally:
        os.close(handle)


def _state_of(folder: Path) -> tuple[int, ...]:
    """What changes when a writer exchanges the folder, while it does so, and after."""
    state: tuple[int, ...] = ()
    for path in (folder, _backup_of(folder)):
        try:
            stat = path.stat()
            state += (stat.st_ino, stat.st_ctime_ns)
        except OSError:
            state += (0, 0)
    return state


def _read(folder: Path, said: Path, verify: bool) -> StoredMemory:
    """Everything in `folder`; messages call it `said`."""
    manifest = _read_manifest(folder, said)
    try:
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise MemoryMismatchError(
                    f"{said / name} is missing although the manifest names it; build the memory anew"
                )
            if verify and _sha256(path) != expected:
                raise MemoryMismatchError(
                    f"{said / name} is damaged: its SHA-256 is not the manifest's; build the memory anew"
                )
        with safe_open(str(folder / VECTORS), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        sources = PackedStrings(tensors["sources_utf8"], tensors["source_offsets"])
        info = {**manifest["info"], "templates": tuple(manifest["info"]["templates"])}
        return StoredMemory(
            entries=Entries(tensors["vectors"], tensors["category_ids"], tensors["kinds"], sources),
            category_names=tuple(manifest["category_names"]),
            info=MemoryInfo(**info),
        )
    except MemoryMismatchError:
        raise
    except (SafetensorError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise MemoryMismatchError(f"{said / VECTORS} is not readable ({error}); build the memory anew") from error


def _write(memory: CategoryMemory, folder: Path) -> None:
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
    texts = int((own.kinds == EntryKind.TEXT).sum())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "created_by": f"rar_mmdet {rar_mmdet.__version__}",
        "info": asdict(memory.info),
        "entries": {"text": texts, "image": len(own) - texts, "dim": memory.dim},
        "names_sha256": vocabulary_hash(memory.category_names),
        "category_names": list(memory.category_names),
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    blank = json.dumps(manifest | {"sha256": ""}, indent=1, ensure_ascii=False).encode()
    digest = hashlib.sha256(blank).hexdigest()
    (folder / MANIFEST).write_bytes(_with_digest(blank, "", digest))


def _read_manifest(folder: Path, said: Path) -> dict[str, Any]:
    path = said / MANIFEST
    try:
        raw = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingAssetError(
            f"no memory in {said} ({MANIFEST} is not there); tools/build_memory.py makes one"
        ) from error
    except OSError as error:
        raise MemoryMismatchError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        manifest: dict[str, Any] = json.loads(raw.decode())
        digest = manifest["sha256"]
        intact = hashlib.sha256(_with_digest(raw, digest, "")).hexdigest() == digest
        version, created_by = manifest["schema_version"], manifest["created_by"]
    except (ValueError, LookupError, TypeError) as error:
        raise MemoryMismatchError(f"{path} is damaged or no manifest of a memory ({error}); build it anew") from error
    if not intact or manifest.get("format") != FORMAT:
        raise MemoryMismatchError(f"{path} is damaged: its SHA-256 does not fit its content; build the memory anew")
    if version != SCHEMA_VERSION:
        advice = "a newer rar_mmdet wrote it, upgrade" if version > SCHEMA_VERSION else "build the memory anew"
        raise MemoryMismatchError(
            f"{path} is of schema {version}, written by {created_by}; this version reads schema {SCHEMA_VERSION}: "
            f"{advice}"
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
