"""Answers that survive: an SQLite file for each machine, shared by its processes and threads, never trusted blindly.

The rule of the files, for every caller: a path names a family. `answers.sqlite` stands for `answers.<machine>.sqlite`,
which this machine writes, and for `answers.sqlite` and `answers.*.sqlite` beside it, which it reads: those of other
machines, and of earlier runs. A folder stands for `answers.sqlite` in it. SQLite's way to let several processes write
(WAL) does not work across machines, not even on a shared disk; so nobody writes another machine's file.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, TypeVar

from rar_mmdet.errors import RankerError

__all__ = ["AnswerCache", "Answers", "DamagedCacheError", "answer_files", "hash_parts", "open_answers", "read_answers"]

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
    """The file is not what was written to it."""


class Answers(Protocol):
    """Texts by key. The first text stored under a key stays."""

    @property
    def path(self) -> Path | None:
        """Where they are kept; `None`: in memory."""
        ...

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those keys that are known."""
        ...

    def put(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Keep these texts, all or none; returns what is kept under their keys now."""
        ...


def answer_files(path: str | Path) -> tuple[Path, list[Path]]:
    """The file that this machine writes, and those it reads beside it (the rule is at the top of this module)."""
    path = Path(path)
    path = path / "answers.sqlite" if path.is_dir() or not path.suffix else path
    machine = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()).strip("-") or "machine"
    own = path.with_name(f"{path.stem}.{machine}{path.suffix}")
    beside = [path, *sorted(path.parent.glob(f"{_escaped(path.stem)}.*{path.suffix}"))]
    return own, [file for file in beside if file != own and file.is_file()]


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def open_answers(path: str | Path | None) -> Answers:
    """The answers of a path by that rule; of `None` or ':memory:', those of this process."""
    return MemoryAnswers() if path is None or str(path) == ":memory:" else SharedAnswers(path)


class MemoryAnswers:
    """Answers of this process; a dict, whose single steps no thread interrupts."""

    path: Path | None = None

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """See `Answers`."""
        return {key: text for key in keys if (text := self._texts.get(key)) is not None}

    def put(self, texts: Mapping[str, str]) -> dict[str, str]:
        """See `Answers`."""
        return {key: self._texts.setdefault(key, text) for key, text in texts.items()}


class SharedAnswers:
    """The files of all machines: this one's is written, all are read as they stood when this process began."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._own: AnswerCache | None = None
        self._others: list[_Source] = []
        self._copies: TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    @property
    def own(self) -> AnswerCache:
        """This machine's file; named when it is first used, on the machine that uses it."""
        with self._lock:
            if self._own is None:
                file, others = answer_files(self.path)
                self._others = [source for other in others if (source := self._readable(other)) is not None]
                self._own = AnswerCache(file)
            return self._own

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """See `Answers`."""
        found = self.own.get(keys)
        for source in list(self._others):
            if missing := [key for key in keys if key not in found]:
                found |= self._read(source, missing)
        return found

    def put(self, texts: Mapping[str, str]) -> dict[str, str]:
        """See `Answers`."""
        return self.own.put(texts)

    def _readable(self, file: Path) -> _Source | None:
        """The file or a copy of it, to be read as it stands now."""
        try:
            self._copies = self._copies or TemporaryDirectory(prefix="rar_mmdet_answers_")
            return _source(file, Path(self._copies.name))
        except OSError as error:
            _tell_unreadable(file, error)
            return None

    def _read(self, source: _Source, keys: Sequence[str]) -> dict[str, str]:
        """What another machine's file knows; one that cannot be read is passed over, never touched."""
        try:
            return _read_only(source, keys)
        except (sqlite3.Error, DamagedCacheError, OSError) as error:
            with self._lock:
                if source in self._others:
                    self._others.remove(source)
                    _tell_unreadable(source.file, error)
            return {}


def _tell_unreadable(file: Path, error: Exception) -> None:
    logger.warning("answers in %s cannot be read (%s); going on without them", file, error)


class _Source(NamedTuple):
    file: Path
    is_copy: bool


class AnswerCache:
    """One file. A write is one transaction: after SIGKILL it is there completely or not at all.

    WAL lets the processes and threads of one machine read and write at once. Each text carries a checksum; a file that
    fails it, or that SQLite cannot read, is renamed to `<file>.damaged-<n>` with a warning and a new one is begun.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._local = threading.local()  # each thread has its own connection
        self._sound: tuple[int, int] | None = None  # the file whose pages were checked

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those keys that are known."""
        return self._guarded(lambda: _select(self._open(), keys))

    def put(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Keep these texts, all or none; returns what is kept under their keys now, by whomever."""

        def write() -> dict[str, str]:
            rows = [(key, _checksum(key.encode(), text.encode()), text) for key, text in texts.items()]
            with self._open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)
                return _select(connection, list(texts))

        return self._guarded(write)

    def close(self) -> None:
        """Close this thread's connection; the next call opens it again."""
        opened = self._opened
        if opened is not None and opened.process == os.getpid():
            opened.connection.close()
        self._local.opened = None

    @property
    def _opened(self) -> _Opened | None:
        return self._local.__dict__.get("opened")

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
        opened = self._opened
        if opened is None or (opened.process, opened.inode) != (os.getpid(), self._inode()):
            self.close()
            with self._lock():
                opened = self._local.opened = _Opened(self._connect(), os.getpid(), self._inode())
        return opened.connection

    def _inode(self) -> tuple[int, int] | None:
        """Which file stands at the path now."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.text_factory = bytes
        try:
            if _is_blank(connection):
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, sum TEXT, text TEXT) WITHOUT ROWID")
                connection.execute("COMMIT")
            if self._sound is None or self._sound != self._inode():
                _check(connection)
                self._sound = self._inode()
        except BaseException:
            connection.close()
            raise
        # A power cut may lose the last transactions, a killed process may not; neither damages the file.
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def _lock(self) -> Any:
        """One process, and one thread of it, at a time creates, checks or sets the file aside."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(f"{self.path}.lock", "w")  # noqa: SIM115 - closing the returned handle frees the lock
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle

    def _set_aside(self, error: Exception) -> None:
        mine = self._opened.inode if self._opened else None
        self.close()
        self._sound = None
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


class _Opened(NamedTuple):
    connection: sqlite3.Connection
    process: int
    inode: tuple[int, int] | None  # of the file it was opened on


def read_answers(file: Path, batch: int = 1000) -> Iterator[dict[str, str | None]]:
    """All texts of a file by key, `batch` at a time; `None` for an entry that fails its checksum. Nothing is locked.

    Raises:
        DamagedCacheError: it was not written by this package.
        sqlite3.Error: it cannot be read.
        OSError: there is no such file.
    """
    with TemporaryDirectory(prefix="rar_mmdet_answers_") as folder:
        source = _source(file, Path(folder))
        connection = _connect_to_read(source)
        try:
            if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
                raise DamagedCacheError("it was not written by this package")
            rows = connection.execute("SELECT key, sum, text FROM answers ORDER BY key")
            while found := rows.fetchmany(batch):
                yield {
                    key.decode(errors="replace"): text.decode() if checksum == _checksum(key, text).encode() else None
                    for key, checksum, text in found
                    if isinstance(key, bytes) and isinstance(text, bytes)
                }
        finally:
            connection.close()


def _source(file: Path, folder: Path) -> _Source:
    """The file, or a copy of it in `folder` with the WAL of a machine at work or killed: WALs are not shared."""
    wal, copy = Path(f"{file}-wal"), folder / file.name
    try:
        has_wal = wal.stat().st_size > 0
        if has_wal:
            shutil.copyfile(wal, f"{copy}-wal")  # first: what moves from it into the file meanwhile is then in both
    except FileNotFoundError:  # there is none, or its machine has just moved it into the file and left
        has_wal = False
    if not has_wal:
        file.stat()
        return _Source(file, is_copy=False)
    shutil.copyfile(file, copy)
    return _Source(copy, is_copy=True)


def _connect_to_read(source: _Source) -> sqlite3.Connection:
    """Nothing is locked, and nothing is created beside a file of another machine."""
    mode = "rw" if source.is_copy else "ro&immutable=1"
    connection = sqlite3.connect(f"{source.file.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS)
    connection.text_factory = bytes
    return connection


def _select(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, str]:
    """The texts of those keys that are there, each checked."""
    found: dict[str, str] = {}
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        part = list(keys[start : start + _KEYS_PER_QUERY])
        marks = ",".join("?" * len(part))
        rows = connection.execute(f"SELECT key, sum, text FROM answers WHERE key IN ({marks})", part)
        for key, checksum, text in rows:  # bytes: damaged ones may be no text
            whole = isinstance(key, bytes) and isinstance(text, bytes)
            if not whole or checksum != _checksum(key, text).encode():
                raise DamagedCacheError(f"the entry {key!r} does not match its checksum")
            found[key.decode()] = text.decode()
    return found


def _read_only(source: _Source, keys: Sequence[str]) -> dict[str, str]:
    """What another machine's file knows of these keys."""
    connection = _connect_to_read(source)
    try:
        return _select(connection, keys)
    finally:
        connection.close()


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
