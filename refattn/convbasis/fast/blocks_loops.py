"""Compiled loops of the block transform: moving data between rows and frequencies, multiplying, summing up.

Every loop over long data runs along contiguous memory, several terms or rows at a time in a fixed order: the compiler
vectorises it without reordering a sum. See `refattn._compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray

Array = NDArray[Any]
"""Real or complex."""

GROUP = 32
"""Frequencies that lie together for every piece: long enough to be written at speed, short enough to be read by all."""


@compiled
def to_columns(rows: Array, low: int, high: int, first: int, at: int, out: Array) -> None:
    """``out[c, at + r − low] = rows[r, first + c]`` for the rows ``low … high − 1``."""
    r = low
    while r + 8 <= high:
        o = at + r - low
        for c in range(out.shape[0]):
            a = first + c
            out[c, o] = rows[r, a]
            out[c, o + 1] = rows[r + 1, a]
            out[c, o + 2] = rows[r + 2, a]
            out[c, o + 3] = rows[r + 3, a]
            out[c, o + 4] = rows[r + 4, a]
            out[c, o + 5] = rows[r + 5, a]
            out[c, o + 6] = rows[r + 6, a]
            out[c, o + 7] = rows[r + 7, a]
        r += 8
    while r < high:
        for c in range(out.shape[0]):
            out[c, at + r - low] = rows[r, first + c]
        r += 1


@compiled
def write_chunks(
    halves: FloatArray,
    ratio: FloatArray,
    first: int,
    block: int,
    out: FloatArray,
    norms: NDArray[np.float64],
) -> None:
    """Chunks ``first, first + 1, …`` of one kernel, as the rows of `out`, each cyclic over 2·block lags.

    Chunk δ holds the lags ``δ·block … (δ+1)·block − 1`` and, behind them, the block of lags before, of which the first
    is never used. ``ratio[δ] = (own, before)`` scales the halves; ``norms[δ]`` gets ``‖·‖₂²`` and ``‖·‖₁``.
    """
    length = halves.size
    for row in range(out.shape[0]):
        chunk = first + row
        out[row] = 0
        squares, total = 0.0, 0.0
        if chunk >= ratio.shape[0]:
            continue
        own, before = ratio[chunk, 0], ratio[chunk, 1]
        base = chunk * block
        for t in range(min(block, length - base)):
            g = halves[base + t] * own
            out[row, t] = g
            squares += g * g
            total += g
        if chunk > 0:
            for t in range(1, min(block, length - base + block)):
                g = halves[base - block + t] * before
                out[row, block + t] = g
                squares += g * g
                total += g
        norms[chunk, 0] = squares
        norms[chunk, 1] = total


@compiled
def column_sizes(x: FloatArray, low: int, high: int, squares: NDArray[np.float64], largest: FloatArray) -> None:
    """``squares[c] = Σ_r x[r, c]²`` and ``largest[c] = max_r |x[r, c]|`` over the rows ``low … high − 1``."""
    squares[:] = 0
    largest[:] = 0
    for r in range(low, high):
        for c in range(squares.size):
            squares[c] += np.float64(x[r, c]) * np.float64(x[r, c])
        for c in range(squares.size):
            size = abs(x[r, c])
            largest[c] = size if size > largest[c] else largest[c]


@compiled
def raise_row_sizes(columns: FloatArray, at: int, rows: FloatArray, pairs: FloatArray) -> None:
    """``rows[r]`` rises to the largest ``|·|`` of row r: the pairs of reals ``columns[c, 2 (at + r) + {0, 1}]``."""
    pairs[:] = 0
    for c in range(columns.shape[0]):
        for t in range(2 * rows.size):
            size = abs(columns[c, 2 * at + t])
            pairs[t] = size if size > pairs[t] else pairs[t]
    for r in range(rows.size):
        rows[r] = max(rows[r], max(pairs[2 * r], pairs[2 * r + 1]))


@compiled
def row_and_column_sizes(x: FloatArray, low: int, high: int, columns: FloatArray, rows: FloatArray) -> None:
    """Largest ``|x[r, c]|`` of every column over the rows ``low … high − 1``, and of each of these rows."""
    d = x.shape[1]
    lanes = np.zeros(64, x.dtype)
    columns[:] = 0
    for r in range(low, high):
        for c in range(d):
            size = abs(x[r, c])
            columns[c] = size if size > columns[c] else columns[c]
        lanes[:] = 0
        for first in range(0, d, 64):
            for c in range(min(64, d - first)):
                size = abs(x[r, first + c])
                lanes[c] = size if size > lanes[c] else lanes[c]
        half = 32
        while half > 0:
            for c in range(half):
                lanes[c] = max(lanes[c], lanes[c + half])
            half //= 2
        rows[r] = lanes[0]


@compiled
def group_maxima(z: FloatArray, place: int, length: int, out: FloatArray) -> None:
    """``out[c] = max_f |z[place, f, c]|`` over `length` frequencies, laid out by `columns_to_groups`."""
    out[:] = 0
    for f in range(length):
        for c in range(out.size):
            size = abs(z[f // GROUP, place, f % GROUP, c])
            out[c] = size if size > out[c] else out[c]


@compiled
def to_rows(columns: Array, at: int, low: int, high: int, first: int, add: bool, out: Array) -> None:
    """``out[r, first + c] = columns[c, at + r − low]`` for the rows ``low … high − 1``, or that is added."""
    if add:
        for r in range(low, high):
            for c in range(columns.shape[0]):
                out[r, first + c] += columns[c, at + r - low]
        return
    r = low
    while r + 8 <= high:
        o = at + r - low
        for c in range(columns.shape[0]):
            a = first + c
            out[r, a] = columns[c, o]
            out[r + 1, a] = columns[c, o + 1]
            out[r + 2, a] = columns[c, o + 2]
            out[r + 3, a] = columns[c, o + 3]
            out[r + 4, a] = columns[c, o + 4]
            out[r + 5, a] = columns[c, o + 5]
            out[r + 6, a] = columns[c, o + 6]
            out[r + 7, a] = columns[c, o + 7]
        r += 8
    while r < high:
        for c in range(columns.shape[0]):
            out[r, first + c] = columns[c, at + r - low]
        r += 1


@compiled
def scale_columns(columns: FloatArray, at: int, factor: FloatArray) -> None:
    """``columns[c, at + t] *= factor[t]``."""
    for c in range(columns.shape[0]):
        for t in range(factor.size):
            columns[c, at + t] *= factor[t]


@compiled
def to_padded_columns(rows: Array, low: int, high: int, first: int, at: int, out: Array) -> None:
    """`to_columns`, and zeros everywhere else in `out`."""
    for c in range(out.shape[0]):
        out[c, :at] = 0
        out[c, at + high - low :] = 0
    to_columns(rows, low, high, first, at, out)


@compiled
def columns_to_groups(columns: Array, place: int, first: int, out: Array) -> None:
    """``out[f // GROUP, place, f % GROUP, first + c] = columns[c, f]``: frequencies outermost, in groups."""
    for f in range(0, columns.shape[1] - 7, 8):
        g, i = f // GROUP, f % GROUP
        for c in range(columns.shape[0]):
            a = first + c
            out[g, place, i, a] = columns[c, f]
            out[g, place, i + 1, a] = columns[c, f + 1]
            out[g, place, i + 2, a] = columns[c, f + 2]
            out[g, place, i + 3, a] = columns[c, f + 3]
            out[g, place, i + 4, a] = columns[c, f + 4]
            out[g, place, i + 5, a] = columns[c, f + 5]
            out[g, place, i + 6, a] = columns[c, f + 6]
            out[g, place, i + 7, a] = columns[c, f + 7]
    for f in range(columns.shape[1] >> 3 << 3, columns.shape[1]):
        for c in range(columns.shape[0]):
            out[f // GROUP, place, f % GROUP, first + c] = columns[c, f]


@compiled
def groups_to_columns(groups: Array, place: int, first: int, out: Array) -> None:
    """The reverse of `columns_to_groups`."""
    for f in range(0, out.shape[1] - 7, 8):
        g, i = f // GROUP, f % GROUP
        for c in range(out.shape[0]):
            a = first + c
            out[c, f] = groups[g, place, i, a]
            out[c, f + 1] = groups[g, place, i + 1, a]
            out[c, f + 2] = groups[g, place, i + 2, a]
            out[c, f + 3] = groups[g, place, i + 3, a]
            out[c, f + 4] = groups[g, place, i + 4, a]
            out[c, f + 5] = groups[g, place, i + 5, a]
            out[c, f + 6] = groups[g, place, i + 6, a]
            out[c, f + 7] = groups[g, place, i + 7, a]
    for f in range(out.shape[1] >> 3 << 3, out.shape[1]):
        for c in range(out.shape[0]):
            out[c, f] = groups[f // GROUP, place, f % GROUP, first + c]


@compiled
def chunks_to_groups(spectra: FloatArray, place: int, out: FloatArray) -> None:
    """``out[f // 8, place + r, 2 (f % 8) + {0, 1}] = spectra[r, 2f + {0, 1}]`` for every row r of `spectra`."""
    for r in range(spectra.shape[0]):
        for start in range(0, spectra.shape[1], 16):
            for i in range(min(16, spectra.shape[1] - start)):
                out[start >> 4, place + r, i] = spectra[r, start + i]


@compiled
def _multiply_eight(
    z: FloatArray,
    kernels: FloatArray,
    place: NDArray[np.int64],
    weight: FloatArray,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    sign: float,
    length: int,
    eight: int,
    inputs: FloatArray,
    factor: FloatArray,
    total: FloatArray,
) -> None:
    """``z[o, f] ← Σ_s weight[o, s] · kernels[place[o, s], f] · z[s, f]``, s from low[o] to high[o] − 1, in place.

    Eight frequencies, from ``8 · eight`` on in the lower half of `length`, each with its mirror image, where the
    transform of a real kernel is the conjugate: one set of factors serves both. `sign` −1 conjugates the kernels
    (the adjoint). `z` is laid out by `columns_to_groups`, with real and imaginary parts in turn, and `kernels` by
    `chunks_to_groups`. What the real and the imaginary part of the kernels contribute is summed apart, so that the
    inner loop is plain multiplication and addition, and put together at the end. `factor` has 16 places a product.
    """
    width = z.shape[3]
    e = 0
    for o in range(place.shape[0]):
        for s in range(low[o], high[o]):
            w = weight[o, s]
            p = place[o, s]
            for i in range(16):
                factor[e, i] = w * kernels[eight, p, i]
            e += 1
    for i in range(min(8, length // 2 + 1 - 8 * eight)):
        f = 8 * eight + i
        mirror = (length - f) % length
        g, t = f // GROUP, f % GROUP
        h, j = mirror // GROUP, mirror % GROUP
        for s in range(place.shape[1]):
            for c in range(width):
                inputs[s, c] = z[g, s, t, c]
            for c in range(width):
                inputs[s, width + c] = z[h, s, j, c]
        e = 0
        re, im = 2 * i, 2 * i + 1
        for o in range(place.shape[0]):
            total[:] = 0
            s = low[o]
            while s + 4 <= high[o]:
                a0, a1, a2, a3 = factor[e, re], factor[e + 1, re], factor[e + 2, re], factor[e + 3, re]
                b0, b1, b2, b3 = factor[e, im], factor[e + 1, im], factor[e + 2, im], factor[e + 3, im]
                for c in range(2 * width):
                    z0, z1, z2, z3 = inputs[s, c], inputs[s + 1, c], inputs[s + 2, c], inputs[s + 3, c]
                    total[0, c] += (a0 * z0 + a1 * z1) + (a2 * z2 + a3 * z3)
                    total[1, c] += (b0 * z0 + b1 * z1) + (b2 * z2 + b3 * z3)
                s += 4
                e += 4
            while s < high[o]:
                a0, b0 = factor[e, re], factor[e, im]
                for c in range(2 * width):
                    total[0, c] += a0 * inputs[s, c]
                    total[1, c] += b0 * inputs[s, c]
                s += 1
                e += 1
            for c in range(width):  # total[0] + i · total[1]
                total[2, 2 * c] = -sign * total[1, 2 * c + 1]
                total[2, 2 * c + 1] = sign * total[1, 2 * c]
            for c in range(width):
                z[g, o, t, c] = total[0, c] + total[2, c]
            if mirror != f:
                for c in range(width):
                    z[h, o, j, c] = total[0, width + c] - total[2, width + c]


@compiled
def multiply(
    z: FloatArray,
    kernels: FloatArray,
    place: NDArray[np.int64],
    weight: FloatArray,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    sign: float,
    length: int,
    group: int,
    inputs: FloatArray,
    factor: FloatArray,
    total: FloatArray,
) -> None:
    """`_multiply_eight` for the frequencies of one group of `z` in the lower half of `length`."""
    for eight in range(group * (GROUP // 8), min((group + 1) * (GROUP // 8), kernels.shape[0])):
        _multiply_eight(z, kernels, place, weight, low, high, sign, length, eight, inputs, factor, total)


@compiled
def _widen(halves: FloatArray, scale: NDArray[np.float64], block: int, out: NDArray[np.float64]) -> None:
    """``out[t] = halves[t] · scale[t // block]``."""
    for first in range(0, out.size, block):
        factor = scale[first // block]
        for t in range(first, min(first + block, out.size)):
            out[t] = halves[t] * factor


@compiled
def _sum_forward(g: NDArray[np.float64], first: int, last: int, out: NDArray[np.float64]) -> None:
    """``out[t] = g[first] + … + g[t]`` for t below `last`, in short sums and sums of sums: fewer roundings."""
    carry = 0.0
    for start in range(first, last, 128):
        run = 0.0
        for t in range(start, min(start + 128, last)):
            run += g[t]
            out[t] = carry + run
        carry += run


@compiled
def _sum_backward(g: NDArray[np.float64], first: int, last: int, out: NDArray[np.float64]) -> None:
    """``out[t] = g[t] + … + g[last − 1]`` for t from `first`."""
    carry = 0.0
    for stop in range(last, first, -128):
        run = 0.0
        for t in range(stop - 1, max(stop - 128, first) - 1, -1):
            run += g[t]
            out[t] = carry + run
        carry += run


@compiled
def add_window_sums(
    starts: NDArray[np.int64],
    i: int,
    halves: FloatArray,
    scale: NDArray[np.float64],
    block: int,
    work: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Add to ``total[r]`` what segment i gives to row r of the matrix with ``g[t] = halves[t] · scale[t // block]``.

    A segment of w columns gives row ``c + s`` the sum of its kernel over the window ``s − w + 1 … s``. With sums from
    the front and from the back of pieces of w lags, a window is the end of one piece and the front of the next: one
    addition and no subtraction, so every row sum is accurate, however small it is. `work` has shape (3, n).
    """
    n = total.size
    start = starts[i]
    w = (starts[i + 1] if i + 1 < starts.size else n) - start
    length = n - start
    g, front, back = work[0, :length], work[1, :length], work[2, :length]
    _widen(halves, scale, block, g)
    for piece in range(0, length, w):
        end = min(piece + w, length)
        _sum_forward(g, piece, end, front)
        for s in range(piece, end):
            total[start + s] += front[s]
        if piece > 0:  # the window of row s starts at s − w + 1, in the piece before; that of its last row does not
            for s in range(piece, min(end, piece + w - 1)):
                total[start + s] += back[s - w + 1]
        if end < length:
            _sum_backward(g, piece, end, back)


@compiled
def add_prefix_sums(
    starts: NDArray[np.int64],
    i: int,
    halves: FloatArray,
    scale: NDArray[np.float64],
    block: int,
    work: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Add to ``total[j]``, for the columns j of segment i, the sum of its kernel over the lags ``0 … n − 1 − j``."""
    n = total.size
    start = starts[i]
    end = starts[i + 1] if i + 1 < starts.size else n
    g, front = work[0, : n - start], work[1, : n - start]
    _widen(halves, scale, block, g)
    _sum_forward(g, 0, n - start, front)
    for j in range(start, end):
        total[j] += front[n - 1 - j]
