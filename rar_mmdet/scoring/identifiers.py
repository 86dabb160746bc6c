"""Ids of images and categories: which row they are, and what to say of those that are nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_column", "differ_in_type_only", "rows_of", "some_of", "sorted_ids"]

IntArray = NDArray[np.int64]
EXAMPLES = 3  # values a message shows


def as_column(values: Sequence[Any]) -> NDArray[Any]:
    """(n,) int64 where all values are whole numbers that fit, else objects."""
    numbers = _as_integers(values)
    if numbers is not None:
        return numbers
    column = np.empty(len(values), object)
    column[:] = values
    return column


def sorted_ids(ids: Iterable[Any]) -> NDArray[Any]:
    """Distinct ids in rising order.

    Raises:
        TypeError: numbers and text are mixed.
    """
    return as_column(sorted(set(ids)))


def rows_of(values: Sequence[Any] | NDArray[Any], ids: NDArray[Any]) -> IntArray:
    """Row of each value in `ids` (distinct, sorted if integers), -1 where it is absent."""
    numbers = _as_integers(values)
    if numbers is None or ids.dtype.kind not in "iu":
        table = {value: row for row, value in enumerate(ids.tolist())}
        return np.array(
            [table.get(v, -1) for v in (values.tolist() if isinstance(values, np.ndarray) else values)], np.int64
        )
    if len(ids) == 0:
        return np.full(len(numbers), -1, np.int64)
    rows = np.minimum(np.searchsorted(ids, numbers), len(ids) - 1)
    return np.where(ids[rows] == numbers, rows, -1)


def differ_in_type_only(unknown: Iterable[Any], known: Iterable[Any]) -> tuple[Any, Any] | None:
    """An unknown id and the known one it would be, were text a number or the reverse ("7", "007" and 7); or None."""
    known = list(known)
    by_text = {str(k): k for k in known}
    present = set(known)
    for value in unknown:
        if str(value) in by_text:
            return value, by_text[str(value)]
        if isinstance(value, str) and value.strip().isdigit() and int(value) in present:
            return value, int(value)
    return None


def some_of(values: Iterable[Any]) -> str:
    """A few distinct values for a message, in their order."""
    distinct = list(dict.fromkeys(values))
    return ", ".join(map(repr, distinct[:EXAMPLES])) + (", …" if len(distinct) > EXAMPLES else "") or "none"


def _as_integers(values: Sequence[Any] | NDArray[Any]) -> IntArray | None:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    if set(map(type, values)) - {int}:
        return None
    try:
        return np.array(values, np.int64)
    except OverflowError:  # beyond 64 bits
        return None
