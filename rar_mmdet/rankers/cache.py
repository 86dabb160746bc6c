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

__all__ = ["AnswerCache"]

logger = logging.getLogger(__name__)

_APPLICATION_ID = 0x52415231  # 'RAR1': marks the file as ours
_KEYS_PER_QUERY = 500  # below SQLite's historical limit of 999 bound variables
_BUSY_SECONDS = 60
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
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_connection": None, "_process": 0}

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those keys that are known."""

        def read() -> dict[str, str]:
            found: dict[str, str] = {}
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                part = list(keys[start : start + _KEYS_PER_QUERY])
                marks = ",".join("?" * len(part))
                rows = self._open().execute(f"SELECT key, sum, text FROM answers WHERE key IN ({marks})", part)
                for key, checksum, text in rows:
                    if checksum != _checksum(key, text):
                        raise DamagedCacheError(f"the entry {key} does not match its checksum")
                    found[key] = text
            return found

        return self._guarded(read)

    def put(self, texts: Mapping[str, str]) -> None:
        """Keep these texts, all or none."""

        def write() -> None:
            rows = [(key, _checksum(key, text), text) for key, text in texts.items()]
            with self._open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

        self._guarded(write)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None

    def _guarded(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except sqlite3.OperationalError:
            raise  # locked, disk full, read-only: the file is sound and the message says what is wrong
        except (sqlite3.DatabaseError, DamagedCacheError) as error:
            self._set_aside(error)
            return action()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        # A connection must not cross a fork; the parent's is left to the parent.
        self._process = os.getpid()
        with self._lock():
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        target = ":memory:" if self.path is None else str(self.path)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(target, timeout=_BUSY_SECONDS, isolation_level=None)
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
        self.close()
        if self.path is None:
            raise error
        with self._lock():
            try:
                self._connect().close()
                if not isinstance(error, DamagedCacheError):
                    return  # another process has replaced it already
            except (sqlite3.DatabaseError, DamagedCacheError):
                pass
            number = 0
            while (kept := Path(f"{self.path}.damaged-{number}")).exists():
                number += 1
            for suffix in ("", "-wal", "-shm"):
                part = Path(f"{self.path}{suffix}")
                if part.exists():
                    part.rename(f"{kept}{suffix}")
        logger.warning("%s is damaged (%s); set aside as %s, beginning a new one", self.path, error, kept)


def _is_blank(connection: sqlite3.Connection) -> bool:
    """Whether nothing was ever kept: a new file, or one whose first process was killed before it had made the table."""
    has_tables = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
    return not has_tables and connection.execute("PRAGMA application_id").fetchone()[0] == 0


def _check(connection: sqlite3.Connection) -> None:
    """Raise unless the file is ours and its pages are sound."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise DamagedCacheError("it was not written by this package")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise DamagedCacheError(f"SQLite's check says: {verdict}")


def _checksum(key: str, text: str) -> str:
    return hashlib.blake2b(f"{key}\0{text}".encode(), digest_size=8).hexdigest()


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """One 160-bit key of several byte strings; their lengths are part of it, so no two splits collide."""
    digest = hashlib.sha256()  # twice as fast as blake2b where the CPU has SHA instructions
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:40]
