"""Bytes of a file -> text, whatever wrote the file; what is no text is refused by the file's name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from rar_mmdet.errors import MissingAssetError, RarError

__all__ = ["decode_text", "parse_json", "read_bytes"]

# A byte order mark says for certain which encoding follows. UTF-32's first, for UTF-16's is the start of it.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes, name: str, error: type[RarError]) -> str:
    """The text of a file: UTF-8, or what its byte order mark says; the mark itself is dropped.

    Args:
        data: the file's bytes.
        name: what messages call the file.
        error: class of the error.

    Raises:
        RarError: of that class, when the bytes are not UTF-8 and no mark says what they are. Nothing is guessed: a
            guess would turn some letters into others without a word.
    """
    encoding, body = "utf-8", data
    for mark, marked in _MARKS:
        if data.startswith(mark):
            encoding, body = marked, data[len(mark) :]
            break
    advice = "Save it as UTF-8 (an editor's 'save as', or `iconv -f OLD_ENCODING -t UTF-8`)"
    if encoding == "utf-8" and b"\0" in body:
        raise error(f"{name} holds zero bytes, so it is no UTF-8 text; it may be UTF-16, or no text at all. {advice}")
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as problem:
        line = body[: problem.start].count(b"\n") + 1
        byte = body[problem.start]
        raise error(
            f"{name} is not {encoding.upper()}: byte 0x{byte:02x} in line {line} cannot be read. It may be Latin-1, "
            f"GBK or another older encoding. {advice}"
        ) from problem


def parse_json(data: bytes, name: str, error: type[RarError]) -> Any:
    """What a JSON file holds.

    Args:
        data: the file's bytes.
        name: what messages call the file.
        error: class of the error.

    Raises:
        RarError: of that class; the file is not JSON, or cut short.
    """
    text = decode_text(data, name, error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{name} is not JSON, or not complete: {problem}. Write or fetch it again") from problem


def read_bytes(path: str, what: str, error: type[RarError], backend_args: dict | None = None) -> bytes:
    """The bytes of a local file, or of what an MMEngine file backend reaches.

    Args:
        path: a path, or an address with "://".
        what: what messages call the file.
        error: class of the error when it is there but cannot be read.
        backend_args: MMEngine's file backend; `None`: the local disk, or what the address says.

    Raises:
        MissingAssetError: there is no such file.
        RarError: of the given class.
    """
    if backend_args is None and "://" not in path:
        local = Path(path).expanduser()
        if not local.exists():
            raise MissingAssetError(f"{what} does not exist (working directory: {Path.cwd()}). Correct the path")
        try:
            return local.read_bytes()
        except OSError as problem:
            raise error(f"{what} cannot be read: {problem.strerror or problem}. Give a file") from problem
    from mmengine.fileio import get

    try:
        return bytes(get(path, backend_args=backend_args))
    except FileNotFoundError as problem:
        raise MissingAssetError(f"{what} does not exist ({problem}). Correct the path") from problem
    except (OSError, ImportError, LookupError, ValueError, TypeError, AssertionError) as problem:
        # What backends of MMEngine raise: a package that is missing, an unknown prefix, a network that is down.
        raise error(
            f"{what} cannot be read by MMEngine's file backend ({type(problem).__name__}: {problem}). Correct the "
            f"address or backend_args={backend_args}"
        ) from problem
