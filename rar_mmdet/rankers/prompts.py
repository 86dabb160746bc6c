"""Prompts: data from a JSON file, filled in without ever expanding what a category name brings along."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rar_mmdet.errors import ConfigError, MissingAssetError

__all__ = ["FIELDS", "LETTERS", "Prompt", "clean_candidate", "load_prompts"]

LETTERS = string.ascii_uppercase
_COUNT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
FIELDS = ("{categories}", "{options}", "{option_lines}", "{name}", "{k}", "{count}", "{format}")
_FIELD = re.compile("{(" + "|".join(field[1:-1] for field in FIELDS) + ")}")


@dataclass(frozen=True)
class Prompt:
    """One prompt text with its placeholders."""

    name: str
    text: str

    @property
    def mentions_candidates(self) -> bool:
        """Whether the rendered text depends on the candidates (beyond the one asked about)."""
        return any(field in self.text for field in ("{categories}", "{options}", "{option_lines}"))

    @property
    def varies_with_candidates(self) -> bool:
        """Whether anything of the rendered text does, be it their number."""
        return any(field != "name" for field in _FIELD.findall(self.text))

    @property
    def unknown_fields(self) -> list[str]:
        """What looks like a placeholder and is none: a misspelt one would reach the model as it stands."""
        return [field for field in re.findall(r"\{[a-z_]+\}", self.text) if field not in FIELDS]

    @property
    def shows_letters(self) -> bool:
        """Whether each candidate stands behind a letter."""
        return any(field in self.text for field in ("{options}", "{option_lines}"))

    @property
    def has_letters(self) -> bool:
        """Whether each candidate gets a letter, of which there are 26."""
        return any(field in self.text for field in ("{options}", "{option_lines}", "{format}"))

    def render(self, candidates: Sequence[str], name: str = "") -> str:
        """The text for these candidates; one pass, so braces inside a category name stay braces.

        >>> Prompt("p", "Is it a {name} or one of {categories}?").render(["cat", "{k}"], "dog")
        "Is it a dog or one of ['cat', '{k}']?"
        """
        lettered = [f"{letter}. {c}" for letter, c in zip(LETTERS, candidates, strict=False)]
        k = len(candidates)
        fields = {
            "categories": str(list(candidates)),
            "options": " ".join(lettered),
            "option_lines": "\n".join(lettered),
            "name": name,
            "k": str(k),
            "count": _COUNT[k] if k < len(_COUNT) else str(k),
            "format": str([f"category {letter}" for letter in LETTERS[:k]]),
        }
        return _FIELD.sub(lambda match: fields[match.group(1)], self.text)


def load_prompts(path: str | Path | None = None) -> dict[str, Prompt]:
    """The prompts of this package, with those of the JSON file `path` ({name: text}) added or put in their place.

    Raises:
        MissingAssetError: there is no such file.
        ConfigError: it is not a JSON object of texts.
    """
    prompts: dict[str, Prompt] = {}
    for file in [Path(__file__).with_name("prompts.json"), *([Path(path)] if path is not None else [])]:
        if not file.is_file():
            raise MissingAssetError(f"prompts={str(file)!r} does not exist; give a JSON file of {{name: text}} or None")
        try:
            texts = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{file} is not JSON: {error}") from error
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ConfigError(f"{file} must be one JSON object of {{prompt name: text}}")
        prompts |= {name: Prompt(name, text) for name, text in texts.items() if not name.startswith("_")}
    return prompts


def clean_candidate(name: str, special_tokens: Sequence[str] = ()) -> str:
    """A category name that is safe inside a prompt: one line, no control characters, no token the model obeys.

    Names are data of a dataset somebody else wrote: a `<image>` or `</s>` in one would add an image or end the turn.

    >>> clean_candidate("salt\\n<image> shaker", ["<image>"])
    'salt < image> shaker'
    """
    name = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in name)
    for token in special_tokens:
        if len(token) > 1 and token in name:
            name = name.replace(token, f"{token[0]} {token[1:]}")
    return " ".join(name.split())
