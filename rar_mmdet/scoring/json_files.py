"""The text of a JSON file, whatever tool wrote it: with a byte order mark, as UTF-16, under gzip; or refused by name.

Nothing here unpickles: a pickle can run any code. It is recognised by its first bytes and refused.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rar_mmdet.errors import RarError

__all__ = ["JsonText", "load_json"]

HEAD_BYTES = 32
GZIP = b"\x1f\x8b"
PICKLE = "a Python pickle (such as the results.pkl of MMDetection's --out)"
UNPACK = "; unpack it first"
# First bytes -> what the file is and what to do. A pickle of protocol 2 or later starts with 0x80.
OTHER_FORMATS = (
    (b"\x80", PICKLE),
    (b"PK\x03\x04", f"a zip archive (.zip, .npz, .pth or .xlsx){UNPACK}"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"BZh", f"compressed by bzip2{UNPACK}"),
    (b"\xfd7zXZ", f"compressed by xz{UNPACK}"),
    (b"(\xb5/\xfd", f"compressed by zstd{UNPACK}"),
    (b"7z\xbc\xaf", f"a 7z archive{UNPACK}"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"version https://", "a Git LFS pointer, not the file it points to; run `git lfs pull`"),
    (b"<", "an HTML or XML page; was a download refused?"),
)


class JsonText:
    """Reads the text of a file a piece at a time; every failure becomes `error` and names the file.

    Args:
        path: The file.
        what: What it should be, as in "result file"; messages start with it.
        error: Class of the errors.
        hint: Said where the file is no JSON text: where such a file comes from.
    """

    def __init__(self, path: str | Path, what: str, error: type[RarError], hint: str = "") -> None:
        self.name, self.error, self.hint = f"{what} {path}", error, hint
        self._raw = self._open(Path(path))
        self._text = self._decoded(self._raw)

    def __enter__(self) -> JsonText:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._text.close()
        self._raw.close()

    def read(self, size: int = -1) -> str:
        """The next `size` characters, all by default; "" at the end."""
        try:
            return self._text.read(size)
        except UnicodeDecodeError as error:
            raise self.error(
                f"{self.name} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8. {self.hint}"
            ) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"{self.name} is a damaged gzip file ({error}); copy or download it again") from None
        except OSError as error:
            raise self.error(f"{self.name} cannot be read: {error}") from None

    def _open(self, path: Path) -> BinaryIO:
        try:
            return open(path, "rb")
        except FileNotFoundError:
            raise self.error(f"{self.name} does not exist (working directory: {Path.cwd()})") from None
        except OSError as error:
            raise self.error(f"{self.name} cannot be opened: {error.strerror or error}") from None

    def _decoded(self, raw: BinaryIO) -> io.TextIOWrapper:
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        if head.startswith(GZIP):
            source: Any = gzip.GzipFile(fileobj=raw)
            try:
                head = source.read(HEAD_BYTES)
                source.seek(0)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raw.close()
                raise self.error(f"{self.name} is a damaged gzip file ({error}); copy or download it again") from None
        else:
            source = raw
        for magic, name in OTHER_FORMATS:
            if head.startswith(magic):
                raw.close()
                raise self.error(f"{self.name} is {name}, expected JSON text. {self.hint}".rstrip())
        return io.TextIOWrapper(source, encoding=json.detect_encoding(head))


def load_json(
    path: str | Path,
    what: str,
    error: type[RarError],
    *,
    hint: str = "",
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """The value a JSON file holds.

    Args:
        path: The file.
        what: What it should be, as in "annotation file"; messages start with it.
        error: Class of the errors.
        hint: Said where the file is no JSON: where such a file comes from.
        object_hook: As of `json.loads`.

    Raises:
        error: The file is missing, empty, truncated or no JSON text.
    """
    with JsonText(path, what, error, hint) as text:
        content = text.read()
    if not content.strip():
        raise error(f"{what} {path} is empty. {hint}".rstrip())
    try:
        return json.loads(content, object_hook=object_hook)
    except json.JSONDecodeError as failure:
        raise error(_explain(content, failure, f"{what} {path}", hint)) from None
    except (ValueError, RecursionError) as failure:  # a number of thousands of digits, or lists in lists in lists
        raise error(f"{what} {path} is not usable JSON: {failure}") from None


def _explain(content: str, failure: json.JSONDecodeError, name: str, hint: str) -> str:
    """What is wrong with a text, in the order in which people make these mistakes."""
    where = f"line {failure.lineno}, column {failure.colno}"
    head, tail = content[: failure.pos].rstrip(), content[failure.pos :].strip()
    if failure.msg == "Extra data" and content.lstrip()[:1] == "{":
        return f"{name} holds more than one JSON value ({where}): are these JSON lines? One value is expected. {hint}"
    if not tail or failure.msg.startswith("Unterminated string"):
        return f"{name} is not complete JSON: it ends in the middle ({where}). Download or copy it again."
    if "comma" in failure.msg or (head.endswith(",") and tail[0] in "]}"):
        return f"{name} is not JSON: there is a comma too many ({where}, before {tail[:20]!r})."
    return f"{name} is not JSON: {failure.msg} ({where}, near {tail[:20]!r}). Was it edited by hand? {hint}".rstrip()
