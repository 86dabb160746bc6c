"""Category names from a names file, an annotation file or a list."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from rar_mmdet.errors import MissingAssetError, VocabularyError

__all__ = ["read_vocabulary"]


def read_vocabulary(source: str | Path | Sequence[str], backend_args: dict | None = None) -> list[str]:
    """Category names in label order.

    Args:
        source: a `.txt` file with one name on each line, a `.json` annotation file in COCO, LVIS or V3Det style (the
            order of its `categories`, which is MMDetection's label order), or the names themselves.
        backend_args: MMEngine file backend of a file.

    Raises:
        MissingAssetError: the file does not exist.
        VocabularyError: it holds no names, an empty name, or is neither `.txt` nor `.json`.
    """
    if isinstance(source, str | Path):
        names = list(_read_file(str(source), tuple(sorted((backend_args or {}).items()))))
        origin = f"vocabulary {str(source)!r}"
    else:
        names, origin = list(source), "vocabulary (a list)"
    if not names:
        raise VocabularyError(f"{origin} holds no names")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise VocabularyError(f"{origin}: entry {index} is {name!r}, expected a name with at least one letter")
    return names


# An annotation file of 200 MB is asked for by the model and by the dataset; it need not be parsed twice.
@lru_cache(maxsize=4)
def _read_file(path: str, backend_items: tuple) -> tuple[str, ...]:
    from mmengine.fileio import exists, get_text, load

    backend_args = dict(backend_items) or None
    suffix = Path(path).suffix.lower()
    if suffix not in (".txt", ".json"):
        close = difflib.get_close_matches(suffix, [".txt", ".json"], n=1)
        raise VocabularyError(
            f"vocabulary {path!r} ends in {suffix!r}; expected .txt (one name on each line) or .json (an annotation "
            f"file with `categories`){'; did you mean ' + close[0] if close else ''}"
        )
    if not exists(path, backend_args=backend_args):
        raise MissingAssetError(f"vocabulary {path!r} does not exist")
    if suffix == ".txt":
        return tuple(line.strip() for line in get_text(path, backend_args=backend_args).splitlines() if line.strip())
    content = load(path, backend_args=backend_args)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list) or not all(isinstance(c, dict) and "name" in c for c in categories):
        raise VocabularyError(f"vocabulary {path!r} has no list `categories` whose entries have a `name`")
    return tuple(category["name"] for category in categories)
