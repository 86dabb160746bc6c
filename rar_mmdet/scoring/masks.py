"""COCO segmentations, checked before pycocotools sees them.

Its C code reads past the end of a broken one, or never returns.

Three forms: polygons `[[x1, y1, x2, y2, ...], ...]`; run lengths `{"size": [h, w], "counts": [..]}`; compressed run
lengths, where `counts` is text. Run lengths alternate between background and object, column by column, and must add up
to h times w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from rar_mmdet.scoring.columns import short

__all__ = ["FORMS", "as_rle", "check_masks", "find_wrong_mask", "mask_size", "run_totals"]

FORMS = 'polygons [[x1, y1, x2, y2, x3, y3, …], …] in pixels, or run lengths {"size": [height, width], "counts": …}'
LARGEST_SIDE = 100_000  # pixels; what lies beyond is no photo, and pycocotools would ask for the memory
LEAST_NUMBERS = 6  # of a polygon: three points
# A compressed run length: 6 bits a character from "0" on, 5 of them the number's, the sixth "more follows".
FIRST_CHAR, MORE, SIGN, DATA, BITS = 48, 0x20, 0x10, 0x1F, 5
MOST_CHARS = 7  # of one number: 32 bits


def find_wrong_mask(masks: Sequence[Any]) -> tuple[int, str] | None:
    """The first segmentation that cannot be used and why, or None; entries that are None are skipped."""
    compressed: list[int] = []
    texts: list[bytes] = []
    found = None
    for i, mask in enumerate(masks):
        if mask is None:
            continue
        wrong = _wrong_polygons(mask) if isinstance(mask, list) else _wrong_runs(mask)
        if wrong is not None:
            found = i, wrong
            break
        if isinstance(mask, dict) and not isinstance(mask["counts"], list):
            compressed.append(i)
            counts = mask["counts"]
            texts.append(counts.encode("utf-8") if isinstance(counts, str) else counts)
    totals = run_totals(texts)
    areas = np.array([masks[i]["size"][0] * masks[i]["size"][1] for i in compressed], np.int64)
    bad = np.flatnonzero(totals != areas)
    if not len(bad):
        return found
    row = int(bad[0])
    height, width = masks[compressed[row]]["size"]
    if totals[row] < 0:
        return compressed[row], "`counts` is no compressed run length (cut off, or of another encoding)"
    return compressed[row], (
        f"the run lengths add up to {totals[row]} pixels, a mask of {height} x {width} has {areas[row]}; cut off?"
    )


def check_masks(masks: Sequence[Any], refuse: Callable[[int, str], Any]) -> None:
    """Call `refuse` with the number of the first segmentation that cannot be used, and what is wrong with it."""
    found = find_wrong_mask(masks)
    if found is not None:
        refuse(*found)


def run_totals(counts: Sequence[bytes]) -> NDArray[np.int64]:
    """(n,) pixels that compressed run lengths cover; -1 where the text is broken.

    As `rleFrString` of pycocotools (common/maskApi.c): from the fourth on, a number is the difference to the last but
    one before it.
    """
    lengths = np.array([len(text) for text in counts], np.int64)
    raw = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(FIRST_CHAR)
    fine = lengths > 0
    ends = np.cumsum(lengths)
    fine[lengths > 0] &= (raw[ends[lengths > 0] - 1] & MORE) == 0  # else the last number is cut off
    if (raw >= 2 * MORE).any():
        fine[np.searchsorted(ends, np.flatnonzero(raw >= 2 * MORE), side="right")] = False
    if not fine.all():
        raw, lengths = raw[np.repeat(fine, lengths)], lengths[fine]
    totals = np.full(len(counts), -1, np.int64)
    totals[fine] = _sum_of_runs(raw, np.cumsum(lengths))
    return totals


def _sum_of_runs(raw: NDArray[np.uint8], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of texts that end at `ends`, each of whole numbers; -1 where a number is too long or a run negative."""
    number, last, chars = _numbers(raw)
    stop = np.searchsorted(last, ends, side="left")
    first = np.concatenate([[0], stop[:-1]])[: len(stop)]
    # Run 0 stands alone; runs 1, 3, 5, … are running sums of their own, and 2, 4, 6, …: two columns, side by side.
    count = stop - first - 1
    is_odd = count % 2 == 1  # the second column then lacks its last entry
    pairs = (count + 1) // 2
    table = np.insert(np.delete(number, first), np.cumsum(count)[is_odd], 0).reshape(-1, 2)
    runs = np.cumsum(table, axis=0)
    row = np.cumsum(pairs) - pairs
    runs -= np.repeat(np.concatenate([[[0, 0]], runs])[row], pairs, axis=0)
    runs[(row + pairs - 1)[is_odd], 1] = 0
    owner = np.repeat(np.arange(len(ends)), pairs)
    odd, even = runs.T
    sums = number[first] + np.bincount(owner, weights=odd + even, minlength=len(ends)).astype(np.int64)
    broken = number[first] < 0
    broken[owner[(odd < 0) | (even < 0)]] = True
    broken[np.searchsorted(ends, last[chars > MOST_CHARS], side="right")] = True
    return np.where(broken, -1, sums)


def _numbers(raw: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The numbers that the characters spell, and of each its last character's place and how many it has."""
    last = np.flatnonzero(raw < MORE)
    start = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    chars = last - start + 1
    number = (raw[start] & DATA).astype(np.int64)
    longer = np.flatnonzero(chars > 1)
    for place in range(1, MOST_CHARS):
        number[longer] |= (raw[start[longer] + place] & DATA).astype(np.int64) << (BITS * place)
        longer = longer[chars[longer] > place + 1]
    negative = np.flatnonzero(raw[last] & SIGN)
    number[negative] -= np.int64(1) << (BITS * np.minimum(chars[negative], MOST_CHARS))
    return number, last, chars


def as_rle(segmentation: Any, image_hw: Sequence[int]) -> Any:
    """Compressed run lengths of a checked segmentation; polygons are drawn into an image of `image_hw`."""
    height, width = int(image_hw[0]), int(image_hw[1])
    if isinstance(segmentation, list):
        # Fewer than three points cover nothing, and pycocotools takes lists of four numbers for boxes.
        parts = [part for part in segmentation if len(part) >= LEAST_NUMBERS]
        return mask_api.merge(mask_api.frPyObjects(parts, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def mask_size(segmentation: Any) -> tuple[int, int] | None:
    """(height, width) that run lengths state; None for polygons."""
    return tuple(segmentation["size"]) if isinstance(segmentation, dict) else None


def _wrong_polygons(polygons: list[Any]) -> str | None:
    if not polygons:
        return "it is empty"
    if isinstance(polygons[0], Real):
        return "it is a flat list; a list of polygons is expected, [[x1, y1, x2, y2, …]]"
    if not all(isinstance(part, (list, tuple, np.ndarray)) for part in polygons):
        return "some of its polygons are no lists"
    values = list(chain.from_iterable(polygons))
    if set(map(type, values)) - {int, float}:
        for odd in (v for v in values if isinstance(v, bool) or not isinstance(v, Real)):
            return f"it holds {short(odd)} where a number is expected; polygons are [[x1, y1, x2, y2, …]]"
    numbers = np.array(values, np.float64)
    if not (np.abs(numbers) <= LARGEST_SIDE).all():  # NaN fails too
        return f"a coordinate is not a number of pixels within {LARGEST_SIDE}"
    if any(len(part) % 2 for part in polygons):
        return "a polygon has an odd count of numbers; x and y alternate"
    if all(len(part) < LEAST_NUMBERS for part in polygons):
        return "it has fewer than three points, which cover nothing"
    return None


def _wrong_runs(mask: Any) -> str | None:
    """What is wrong with run lengths, but for the sum of compressed ones."""
    if not isinstance(mask, dict) or "size" not in mask or "counts" not in mask:
        return f"expected {FORMS}"
    size, counts = mask["size"], mask["counts"]
    if not isinstance(size, (list, tuple)) or len(size) != 2 or any(type(v) is not int for v in size):
        return f"`size` is {short(size)}, expected [height, width]"
    if not all(0 <= v <= LARGEST_SIDE for v in size):
        return f"`size` is {short(size)}, expected pixels from 0 to {LARGEST_SIDE}"
    if isinstance(counts, (str, bytes)):
        return None
    if not isinstance(counts, list) or any(type(v) is not int or v < 0 for v in counts):
        return "`counts` is neither text nor a list of whole numbers from 0 on"
    if sum(counts) != size[0] * size[1]:
        return (
            f"the run lengths add up to {sum(counts)} pixels, a mask of {size[0]} x {size[1]} has {size[0] * size[1]}"
        )
    return None
