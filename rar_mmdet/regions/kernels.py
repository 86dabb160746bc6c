"""The two loops a CPU crop is made of, compiled for the machine at hand (numba): antialiased resampling and blur.

A resampling is two passes of weighted sums of rows. Rows lie one after another in memory in both passes, so that each
sum is a plain vector operation; in between OpenCV turns what the first pass made on its side.
Everything runs without Python's global lock. The machine code is kept beside this file, or in the user's cache folder.
"""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["axis_taps", "blur_outside", "resample_columns", "resample_rows", "sum_rows"]

logger = logging.getLogger(__name__)

# IEEE arithmetic but for fused multiply-adds, reciprocals and the sign of zero; nothing here is infinite or NaN. Sums
# keep their order: a crop is the same to the bit whichever others it is cut with.
FAST_MATH = {"contract", "arcp", "nsz", "nnan", "ninf"}
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": FAST_MATH}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that Python calls; its machine code is kept on disk, and made anew if that is of no use."""
    try:
        machine = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        machine = numba.njit(**OPTIONS)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal machine
        try:
            return machine(*arguments)
        # A file cut short, a disk or quota that is full, code of other types by two processes that compiled at once.
        except (EOFError, OSError, TypeError, pickle.UnpicklingError) as error:
            folder = machine.stats.cache_path
            if folder is None:
                raise
            logger.warning(
                "machine code cannot be kept in %s (%s); delete that folder's *.nbi and *.nbc", folder, error
            )
            machine = numba.njit(**OPTIONS)(function)
            return machine(*arguments)

    return call


inlined = numba.njit(**OPTIONS)  # becomes a part of the code of who calls it


@compiled
def axis_taps(centre, step, length):  # type: ignore[no-untyped-def]
    """Pixels and weights of the bicubic kernel (Keys, a = -1/2, as in PIL), stretched by max(step, 1), along a line.

    centre: (n,) float64 where output pixels are sampled. step: pixels per output pixel. length: pixels there are.
    Returns first and count, (n,) int64: the pixels of each sum; weight, (n, T) float32, sums 1.
    """
    stretch = max(step, 1.0)
    shrink = np.float32(1 / stretch)
    n = centre.shape[0]
    first, count = np.empty(n, np.int64), np.empty(n, np.int64)
    weight = np.empty((n, int(4 * stretch) + 3), np.float32)
    for i in range(n):
        low = max(int(centre[i] - 2 * stretch + 0.5), 0)
        high = min(int(centre[i] + 2 * stretch + 0.5), length)
        start = np.float32((low + 0.5 - centre[i]) / stretch)
        total = np.float32(0)
        for t in range(high - low):
            x = abs(start + t * shrink)
            if x < 1:
                w = (np.float32(1.5) * x - np.float32(2.5)) * x * x + np.float32(1)
            elif x < 2:
                w = ((np.float32(2.5) - np.float32(0.5) * x) * x - np.float32(4)) * x + np.float32(2)
            else:
                w = np.float32(0)
            weight[i, t] = w
            total += w
        for t in range(high - low):
            weight[i, t] /= total
        first[i], count[i] = low, high - low
    return first, count, weight


@inlined
def weighted_rows(rows, first, count, weight, begin, end, out):  # type: ignore[no-untyped-def]
    """out[:] = sum over t of weight[t] * rows[first + t, begin:end]; four rows per turn: `out` is written less."""
    n = end - begin
    done = 0
    if count >= 4:
        a, b = rows[first, begin:end], rows[first + 1, begin:end]
        c, d = rows[first + 2, begin:end], rows[first + 3, begin:end]
        wa, wb, wc, wd = weight[0], weight[1], weight[2], weight[3]
        for k in range(n):
            out[k] = wa * np.float32(a[k]) + wb * np.float32(b[k]) + wc * np.float32(c[k]) + wd * np.float32(d[k])
        done = 4
    else:
        for k in range(n):
            out[k] = 0
    while done + 4 <= count:
        a, b = rows[first + done, begin:end], rows[first + done + 1, begin:end]
        c, d = rows[first + done + 2, begin:end], rows[first + done + 3, begin:end]
        wa, wb, wc, wd = weight[done], weight[done + 1], weight[done + 2], weight[done + 3]
        for k in range(n):
            out[k] += wa * np.float32(a[k]) + wb * np.float32(b[k]) + wc * np.float32(c[k]) + wd * np.float32(d[k])
        done += 4
    while done < count:
        a, wa = rows[first + done, begin:end], weight[done]
        for k in range(n):
            out[k] += wa * np.float32(a[k])
        done += 1


@inlined
def row_sums(rows, first, count, weight, out):  # type: ignore[no-untyped-def]
    """out[i] = sum over t of weight[i, t] * rows[first[i] + t]; rows (h, n) uint8 or float32, out (m, n) float32."""
    for i in range(first.shape[0]):
        weighted_rows(rows, first[i], count[i], weight[i], 0, rows.shape[1], out[i])


@compiled
def sum_rows(rows, first, count, weight, out):  # type: ignore[no-untyped-def]
    """`row_sums` for Python."""
    row_sums(rows, first, count, weight, out)


@inlined
def grey_level(value):  # type: ignore[no-untyped-def]
    """Rounded and saturated; 255 and a half would be cut off to 255."""
    return np.uint8(np.int32(min(max(value + np.float32(0.5), np.float32(0)), np.float32(255.5))))


@compiled
def resample_columns(transposed, begin, end, first, count, weight, out):  # type: ignore[no-untyped-def]
    """First pass: column i of the output for rows begin..end of the photo, rounded in between as PIL does.

    transposed: (W, H * C) uint8 or float32, the transposed photo. begin, end: first and last + 1 of its H * C.
    first, count, weight: from `axis_taps`, n columns. out: (n, end - begin) uint8, written.
    """
    line = np.empty(end - begin, np.float32)
    for x in range(first.shape[0]):
        weighted_rows(transposed, first[x], count[x], weight[x], begin, end, line)
        target = out[x]
        for k in range(end - begin):
            target[k] = grey_level(line[k])


@compiled
def resample_rows(planes, begin, first, count, weight, share_x, share_y, colour, left, top, out):  # type: ignore[no-untyped-def]
    """Second pass, into a part of a crop.

    planes: (C, h, n) uint8, what the first pass made, transposed back. begin: the row of the photo that is planes[:, 0]
    first, count, weight: from `axis_taps`, m rows. share_x: (n,), share_y: (m,) float32, how much of each output column
    and row the photo covers; the rest is colour, (C,) float32. out: (C, S, S) uint8, written from `left`, `top` on.
    """
    n = share_x.shape[0]
    line = np.empty(n, np.float32)
    whole = share_x.min() == 1
    for c in range(planes.shape[0]):
        rows = planes[c]
        for y in range(first.shape[0]):
            weighted_rows(rows, first[y] - begin, count[y], weight[y], 0, n, line)
            target = out[c, top + y, left : left + n]
            if whole and share_y[y] == 1:
                for x in range(n):
                    target[x] = grey_level(line[x])
            else:
                for x in range(n):
                    value = min(max(line[x], np.float32(0)), np.float32(255))
                    target[x] = grey_level(colour[c] + (value - colour[c]) * (share_x[x] * share_y[y]))


@inlined
def transpose(plane, out):  # type: ignore[no-untyped-def]
    """out[x, y] = plane[y, x]."""
    for x in range(plane.shape[1]):
        line = out[x]
        for y in range(plane.shape[0]):
            line[y] = plane[y, x]


@compiled
def blur_outside(crop, inside, reduction, smoothing, between):  # type: ignore[no-untyped-def]
    """Replace what lies outside of `inside` by a blur of the whole crop, in place.

    crop: (C, S, S) uint8. inside: (4,) int64 x1, y1, x2, y2 (x2, y2 excluded) of what stays.
    reduction, smoothing: first, count, weight of the sums (see `axis_taps`) that make S pixels s, and s pixels s; no
    weight is negative. between: before, after (S,) uint32 and share (S,) float32: each output pixel lies between two of
    the s pixels, `share` of the way.
    """
    channels, size = crop.shape[0], crop.shape[1]
    before, after, share = between
    x1, y1, x2, y2 = inside
    small = reduction[0].shape[0]
    flat, tall = np.empty((small, size), np.float32), np.empty((size, small), np.float32)
    one, other = np.empty((small, small), np.float32), np.empty((small, small), np.float32)
    for c in range(channels):
        row_sums(crop[c], *reduction, flat)  # down
        transpose(flat, tall)
        row_sums(tall, *reduction, one)  # across
        row_sums(one, *smoothing, other)
        transpose(other, one)
        row_sums(one, *smoothing, other)  # down
        for y in range(small):
            source, target = other[y], flat[y]
            for x in range(size):
                target[x] = source[before[x]] + share[x] * (source[after[x]] - source[before[x]])
        for y in range(size):
            above, below, down, target = flat[before[y]], flat[after[y]], share[y], crop[c, y]
            left_end, right_begin = (x1, x2) if y1 <= y < y2 else (size, size)
            # Two plain loops: one over both ends is not vectorised, and costs a tenth of a crop.
            for x in range(left_end):
                target[x] = np.uint8(np.int32(above[x] + down * (below[x] - above[x]) + np.float32(0.5)))
            for x in range(right_begin, size):
                target[x] = np.uint8(np.int32(above[x] + down * (below[x] - above[x]) + np.float32(0.5)))
