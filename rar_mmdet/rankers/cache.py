"""Answers that survive: one SQLite file, shared by several processes, never trusted blindly."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from rar_mmdet.errors import RankerError

__all__ = ["AnswerCache"]

logger = logging.getLogger(__name__)

_APPLICATION_ID = 0x52415231  # 'RAR1': marks the file as ours
_KEYS_PER_QUERY = 500  # below SQLite's historical limit of 999 bound variables
_BUSY_SECONDS = 60
# What SQLite may meet with a sound file; its other complaints are about what is in it.
_PASSING = {
    getattr(sqlite3, f"SQLITE_{name}")
    for name in ("BUSY", "LOCKED", "FULL", "READONLY", "CANTOPEN", "IOERR", "PERM", "NOMEM", "INTERRUPT")
}
_T = TypeVar("_T")


class DamagedCacheError(Exception):
    """The file is not what was written to it; handled here, never shown."""


class AnswerCache:
    """Texts by key. A write is one transaction: after SIGKILL it is there completely or not at all.

    WAL lets several processes read and write at once (on one machine; WAL does not work across network mounts). The
    first text stored under a key stays. Each text carries a checksum; a file that fails it, or that SQLite cannot
    read, is renamed to `<file>.damaged-<n>` with a warning and a new one is begun.

    Args:
        path: the file, or `None` to keep answers in memory only.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, tuple[int, int] | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_connection": None, "_opened": None}

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those keys that are known."""

        def read() -> dict[str, str]:
            found: dict[str, str] = {}
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                part = list(keys[start : start + _KEYS_PER_QUERY])
                marks = ",".join("?" * len(part))
                rows = self._open().execute(f"SELECT key, sum, text FROM answers WHERE key IN ({marks})", part)
                for key, checksum, text in rows:  # bytes: damaged ones may be no text
                    whole = isinstance(key, bytes) and isinstance(text, bytes)
                    if not whole or checksum != _checksum(key, text).encode():
                        raise DamagedCacheError(f"the entry {key!r} does not match its checksum")
                    found[key.decode()] = text.decode()
            return found

        return self._guarded(read)

    def put(self, texts: Mapping[str, str]) -> None:
        """Keep these texts, all or none."""

        def write() -> None:
            rows = [(key, _checksum(key.encode(), text.encode()), text) for key, text in texts.items()]
            with self._open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

        self._guarded(write)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._connection is not None and self._opened and self._opened[0] == os.getpid():
            self._connection.close()
        self._connection = self._opened = None

    def _guarded(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except (sqlite3.DatabaseError, DamagedCacheError, OSError) as error:
            if isinstance(error, OSError) or _is_passing(error):
                raise RankerError(
                    f"answers cannot be kept in {self.path}: {error}. Look for another program that holds the file, a "
                    "full disk or missing rights; or give another file as the ranker's `cache` (None: keep in memory)"
                ) from error
            self._set_aside(error)
            return action()

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one after a fork, and when the file was set aside or deleted by somebody else."""
        if self._connection is None or self._opened != (os.getpid(), self._inode()):
            self.close()
            with self._lock():
                self._connection = self._connect()
                self._opened = os.getpid(), self._inode()
        return self._connection

    def _inode(self) -> tuple[int, int] | None:
        """Which file stands at the path now."""
        if self.path is None or not self.path.exists():
            return None
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _connect(self) -> sqlite3.Connection:
        target = ":memory:" if self.path is None else str(self.path)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(target, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.text_factory = bytes
        try:
            if _is_blank(connection):
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, sum TEXT, text TEXT) WITHOUT ROWID")
                connection.execute("COMMIT")
            _check(connection)
        except BaseException:
            connection.close()
            raise
        # A power cut may lose the last transactions, a killed process may not; neither damages the file.
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def _lock(self) -> AbstractContextManager[Any]:
        """One process at a time creates, checks or sets the file aside."""
        if self.path is None:
            return nullcontext()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(f"{self.path}.lock", "w")  # noqa: SIM115 - closing the returned handle frees the lock
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle

    def _set_aside(self, error: Exception) -> None:
        mine = self._opened[1] if self._opened else None
        self.close()
        if self.path is None:
            raise error
        with self._lock():
            if mine is not None and self._inode() != mine:
                return  # another process has replaced it already
            if mine is None:  # it could not even be opened: whether by now it can, only trying tells
                try:
                    self._connect().close()
                    return
                except (sqlite3.DatabaseError, DamagedCacheError) as again:
                    if _is_passing(again):
                        raise
            number = 0
            while (kept := Path(f"{self.path}.damaged-{number}")).exists():
                number += 1
            for suffix in ("", "-wal", "-shm"):
                part = Path(f"{self.path}{suffix}")
                if part.exists():
                    part.rename(f"{kept}{suffix}")
        logger.warning("%s is damaged (%s); set aside as %s, beginning a new one", self.path, error, kept)


def _is_passing(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING


def _is_blank(connection: sqlite3.Connection) -> bool:
    """Whether nothing was ever kept: a new file, or one whose first process was killed before it had made the table."""
    has_tables = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
    return not has_tables and connection.execute("PRAGMA application_id").fetchone()[0] == 0


def _check(connection: sqlite3.Connection) -> None:
    """Raise unless the file is ours and its pages are sound."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise DamagedCacheError("it was not written by this package")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != b"ok":
        raise DamagedCacheError(f"SQLite's check says: {verdict.decode(errors='replace')}")
    connection.execute("SELECT key, sum, text FROM answers LIMIT 0")


def _checksum(key: bytes, text: bytes) -> str:
    return hashlib.blake2b(key + b"\0" + text, digest_size=8).hexdigest()


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """One 160-bit key of several byte strings; their lengths are part of it, so no two splits collide."""
    digest = hashlib.sha256()  # twice as fast as blake2b where the CPU has SHA instructions
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:40]
