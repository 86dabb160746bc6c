"""Columns of a list of JSON records: checked as a whole, which is fast; where something is odd, one by one to name it.

A message names the file, the number of the record in its list (from 0), the ids it carries, the field, its value and
what is expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.errors import RarError

__all__ = ["BOX", "Records", "short"]

BOX = "four finite numbers x, y, width, height"
LONGEST_VALUE = 80  # characters of a value in a message
LONGEST_SIDE = 10**7  # pixels of an image; what is longer is a mistake
PLAIN_NUMBERS = {int, float}


@dataclass(frozen=True)
class Records:
    """Some records of one list, and how to speak of them."""

    items: Sequence[Any]
    where: str  # "result file r.json", "annotation file a.json, images"
    error: type[RarError]
    keys: tuple[str, ...]  # fields that tell which record it is
    first: int = 0  # number of the first record in its list

    def __len__(self) -> int:
        return len(self.items)

    def refuse(self, index: int, key: str, expected: str) -> NoReturn:
        """Raise the error that names record `index`, its field and what is expected there."""
        record, where = self.items[index], self.name(index)
        if not isinstance(record, dict):
            fields = ", ".join(dict.fromkeys((*self.keys, key)))
            raise self.error(f"{where} is {short(record)}, expected a dictionary with {fields}")
        said = f"has {key} {short(record[key])}" if key in record else f"has no {key}"
        raise self.error(f"{where} {said}, expected {expected}")

    def name(self, index: int) -> str:
        """The file, the number of the record and its ids."""
        record = self.items[index]
        known = (
            [f"{key} {short(record[key])}" for key in self.keys if key in record] if isinstance(record, dict) else []
        )
        return f"{self.where}: record {self.first + index}" + (f" ({', '.join(known)})" if known else "")

    def ids(self, key: str) -> list[Any]:
        """Whole numbers or texts; 3.0 counts as 3."""
        values = self._values(key, "a whole number or text")
        if set(map(type, values)) <= {int, str}:
            return values
        return [self._checked(i, key, v, _as_id, "a whole number or text") for i, v in enumerate(values)]

    def numbers(self, key: str, default: float | None = None) -> NDArray[np.float64]:
        """(n,) finite numbers; `default`, where given, stands for those that are missing or null."""
        expected = "a finite number"
        if default is None:
            values = self._values(key, expected)
        else:
            values = [default if r.get(key) is None else r[key] for r in self._dictionaries()]
        if set(map(type, values)) <= PLAIN_NUMBERS:
            column = _float_array(values)
            if column is not None and np.isfinite(column).all():
                return column
        return np.array([self._checked(i, key, v, _as_number, expected) for i, v in enumerate(values)], np.float64)

    def boxes(self, key: str = "bbox", *, optional: bool = False) -> NDArray[np.float64]:
        """(n, 4) finite numbers; if `optional`, rows of NaN where a box is missing, null or empty."""
        values: list[Any] = [r.get(key) for r in self._dictionaries()]
        if values and set(map(type, values)) <= {list} and set(map(type, chain.from_iterable(values))) <= PLAIN_NUMBERS:
            column = _float_array(values)
            if column is not None and column.shape == (len(values), 4) and np.isfinite(column).all():
                return column
        boxes = np.full((len(values), 4), np.nan)
        for i, value in enumerate(values):
            if optional and (value is None or (isinstance(value, list) and not value)):
                continue
            boxes[i] = self._checked(i, key, value, _as_box, BOX)
        return boxes

    def flags(self, key: str) -> NDArray[np.bool_]:
        """(n,) 0 or 1, false or true; False where missing or null."""
        values = [0 if r.get(key) is None else r[key] for r in self._dictionaries()]
        if set(map(type, values)) <= {int, bool} and set(values) <= {0, 1}:
            return np.array(values, bool)
        return np.array([self._checked(i, key, v, _as_flag, "0 or 1") for i, v in enumerate(values)], bool)

    def lengths(self, key: str) -> list[int]:
        """Whole numbers from 0 on, as of a height; 0 where missing or null."""
        values: list[Any] = [r.get(key) for r in self._dictionaries()]
        if set(map(type, values)) <= {int} and 0 <= min(values, default=0) <= max(values, default=0) <= LONGEST_SIDE:
            return values
        expected = "a whole number of pixels"
        return [0 if v is None else self._checked(i, key, v, _as_length, expected) for i, v in enumerate(values)]

    def _values(self, key: str, expected: str) -> list[Any]:
        try:
            return [r[key] for r in self.items]
        except (KeyError, TypeError, IndexError):  # no such field, or no dictionary
            index = next(i for i, r in enumerate(self.items) if not isinstance(r, dict) or key not in r)
            self.refuse(index, key, expected)

    def _dictionaries(self) -> Sequence[dict[str, Any]]:
        if not all(isinstance(r, dict) for r in self.items):
            self.refuse(next(i for i, r in enumerate(self.items) if not isinstance(r, dict)), self.keys[0], "")
        return self.items

    def _checked(self, index: int, key: str, value: Any, read: Callable[[Any], Any], expected: str) -> Any:
        found = read(value)
        if found is None:
            self.refuse(index, key, expected)
        return found


def short(value: Any) -> str:
    """A value as a message shows it: `repr`, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _float_array(values: Sequence[Any]) -> NDArray[np.float64] | None:
    try:
        return np.array(values, np.float64)
    except (ValueError, OverflowError):  # rows of different lengths; a whole number beyond the floats
        return None


def _as_id(value: Any) -> int | str | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, str):
        return value
    number = _as_number(value)
    if isinstance(value, int):  # also beyond what a float can tell apart
        return value
    return int(number) if number is not None and number == int(number) else None


def _as_number(value: Any) -> float | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _as_box(value: Any) -> list[float] | None:
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 4:
        return None
    numbers = [number for number in map(_as_number, value) if number is not None]
    return numbers if len(numbers) == 4 else None


def _as_flag(value: Any) -> bool | None:
    return bool(value) if isinstance(value, (Real, np.bool_)) and value in (0, 1) else None


def _as_length(value: Any) -> int | None:
    number = _as_number(value)
    return int(number) if number is not None and 0 <= number <= LONGEST_SIDE and number == int(number) else None
