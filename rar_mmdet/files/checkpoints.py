"""A model on disk: where it is, what it is, and whether it is complete, without loading it.

A model's fingerprint is a hash over the content of its files, never over their place or date, so that a folder may be
copied or moved. Which files count is said where they are listed: `_CONTENT` here, `WeightsSource.digest` for encoders.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from rar_mmdet.errors import CheckpointError

__all__ = ["Checkpoint", "file_sha256"]

# Everything that shapes an answer: weights, tokenizer, processor and chat template.
_CONTENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


class Checkpoint:
    """A folder in the layout of transformers, or a hub id whose files lie in the local hub cache.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of the hub id; `None` for its main branch.
        what: what messages call the model.
        error: class of the errors; the room that loads the model has one of its own.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        what: str = "model",
        error: type[CheckpointError] = CheckpointError,
    ) -> None:
        self.model, self.revision, self.what, self.error = model, revision, what, error

    @property
    def folder(self) -> Path:
        """Where the files are; the hub id as a path if they are nowhere."""
        local = Path(self.model).expanduser()
        if local.is_dir():
            return local
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
        except HFValidationError:  # an absolute or deeper path is no hub id
            found = None
        return Path(found).parent if isinstance(found, str) else local

    @property
    def name(self) -> str:
        """The hub id, or the name of the folder: its content has a hash of its own, its place does not matter."""
        return self.folder.resolve().name if Path(self.model).expanduser().is_dir() else self.model

    def missing(self) -> list[str]:
        """Lines that say what is missing, where it was looked for and how to get it."""
        folder = self.folder
        if not folder.is_dir():
            looks_like_hub_id = self.model.count("/") == 1 and not self.model.startswith((".", "/", "~"))
            get = (
                f"run `hf download {self.model}{f' --revision {self.revision}' if self.revision else ''}` "
                "if that is a hub id, or put the model's folder there"
                if looks_like_hub_id
                else "give the folder of a model in the layout of transformers"
            )
            return [f"{self.what} {self.model!r}: no such folder, and not in the local hub cache; {get}"]
        lines = []
        if not (folder / "config.json").is_file():
            lines.append(f"{self.what} {self.model!r}: no config.json in {folder}; get the complete model folder")
        index = self._json("model.safetensors.index.json")
        wanted = set(index.get("weight_map", {}).values()) if index else {"model.safetensors"}
        absent = sorted(name for name in wanted if not (folder / name).is_file())
        if absent:
            lines.append(f"{self.what} {self.model!r}: no {', '.join(absent[:3])} in {folder}; download it again")
        return lines

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, or nothing if it is not there."""
        return self._json("config.json")

    def image_size(self) -> int | None:
        """Side in pixels of the square images its vision tower is built for, if its config says so."""
        size = self.config.get("vision_config", {}).get("image_size", self.config.get("img_size"))
        size = size[0] if isinstance(size, list) and size else size
        return size if isinstance(size, int) else None

    @cached_property
    def image_processor(self) -> str | None:
        """Class of the image processor that its files name, if they do."""
        for name in ("preprocessor_config.json", "processor_config.json"):
            settings = self._json(name)
            nested = settings.get("image_processor")
            for where in (settings, nested if isinstance(nested, dict) else {}):
                if isinstance(found := where.get("image_processor_type"), str):
                    return found
        return None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of every file that shapes an answer."""
        digest = hashlib.sha256()
        for file in sorted({f for pattern in _CONTENT for f in self.folder.glob(pattern)}):
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
        return digest.hexdigest()[:32]

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Special and added tokens of its tokenizer, longest first, read from its JSON files."""
        tokens = set(self._json("added_tokens.json"))  # {token: id}
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            for key, value in self._json(name).items():
                if key.endswith(("_token", "_tokens", "_tokens_decoder")):
                    tokens |= set(_token_texts(value))
        return tuple(sorted(tokens, key=lambda token: (-len(token), token)))

    def _json(self, name: str) -> dict[str, Any]:
        """The JSON object in that file; empty if there is no such file."""
        file = self.folder / name
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise self.error(f"{file} is not JSON: {error}. Download it again") from error
        if not isinstance(content, dict):
            raise self.error(f"{file} must be one JSON object, got a {type(content).__name__}. Download it again")
        return content


def _token_texts(value: Any) -> Iterator[str]:
    """The tokens in 'x', {'content': 'x', ...}, or a list or dict of such; flags are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and "content" in value:
        yield value["content"]
    elif isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _token_texts(entry)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read once in a process while the file is unchanged.

    A large file of the hub cache is a link to a blob that is named by its SHA-256; the name is taken for it.
    """
    target = path.resolve()
    if path.is_symlink() and len(target.name) == 64 and all(c in "0123456789abcdef" for c in target.name):
        return target.name
    stat = target.stat()
    return _sha256_of(str(target), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_of(path: str, *state: int) -> str:
    """What else is given only tells one state of the file from another."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
