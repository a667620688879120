"""The block transform: products with ``Σ_i conv(g_i, m_i)``, ``g_i = exp(u_i)``, and with its transpose (ours).

Rows and columns are cut into blocks of B. A *pair* is a block of columns and a segment that meet: at most n/B + k.

1. The rows of x in each pair, zero elsewhere in its block, are transformed with length 2B: ``X̂_p``.
2. The kernels are transformed in *chunks* of lags, length 2B: ``ĝ_{i,δ}`` holds the lags between two blocks that are δ
   apart, those of block δ and, cyclically behind them, those of block δ − 1.
3. Row block R gets ``Ŷ_R = Σ_p ĝ_{seg(p), R − blk(p)} ∘ X̂_p`` over the pairs p with ``blk(p) ≤ R``.
4. One inverse transform a row block; its first B entries are the rows.

The transposed product reads row blocks and writes pairs, with conjugate kernels: ``X̂_p = Σ_R conj(ĝ) ∘ Ŷ_R``. Time
O((n/B + k) d B log B + (n/B)(n/B + k) B d); with ``B ≈ n/k`` that is O(knd + nd log n). Memory ``2 (n + kB) d`` numbers
for the transforms and ``3 kn`` for the kernels, beyond input and output.

Two real columns of x travel as the real and imaginary part of one complex column: kernels are real, so the product
keeps them apart. Exponents: every half chunk is scaled by its own largest ``exp(u)``, every block of results by the
largest that reaches it, so nothing overflows and what a block loses to rounding is relative to what *it* holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from refattn import _fft
from refattn._compiled import as_input
from refattn._memory import give_back, take_workspace
from refattn._threads import for_each
from refattn._validation import FloatArray
from refattn.convbasis.bounds import convolution_error
from refattn.convbasis.fast import blocks_loops

_CACHE_BYTES = 1 << 18
"""Size of a buffer that is transformed at once: input and output together fill a core's cache."""
_COLUMNS = 8
"""Complex columns transformed at once, at least: a cache line of them."""
_SQUARES_VANISH = 1e-140
"""Largest entry below which squares lose digits, and then vanish: a norm of them says that there is no error."""
_PARTS = 4
"""Parts in which the kernels are summed up; their number does not depend on that of the threads."""


@dataclass(frozen=True)
class Pieces:
    """Runs of rows, each inside one block: its number, its first row and the one after the last, shapes (pieces,)."""

    block: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    def __len__(self) -> int:
        return self.block.size

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give every row the value of its piece."""
        return np.repeat(values, self.high - self.low)


@dataclass(frozen=True)
class Spectra:
    """Transforms of pieces of a matrix, or of a product.

    `values`, shape (groups, places, frequencies of a group, width), has the complex columns as pairs of reals, in the
    order in which they are multiplied; `norms` and `peaks`, shape (pieces, complex columns), the 2-norm of every
    complex column of each piece and the largest modulus of its transform; `columns` and `rows` the largest entries of
    the columns and rows.
    """

    values: FloatArray
    norms: NDArray[np.float64]
    peaks: NDArray[np.float64]
    columns: FloatArray
    rows: FloatArray

    def release(self) -> None:
        """Give the memory of `values` back for the next product; they must not be used any more."""
        give_back(self.values)


class Reach(NamedTuple):
    """Which chunks meet which pieces in a product.

    `place`, shape (results, pieces), is the number of the chunk between a piece and a piece of the result, and `weight`
    the scale of their product, both 0 where they do not meet; `low` and `high` are the first of the pieces that reach a
    result and the one after the last; what is computed is the product times ``exp(−shift)``.
    """

    place: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    shift: NDArray[np.float64]
    weight: NDArray[np.float64]


class BlockProduct:
    """The matrix ``Σ_i conv(exp(u_i), m_i)`` of one head, ready for products; `strict` leaves out the diagonal.

    The first of `starts` is 0; `kernels`, shape (k, n), are the logarithms u_i of the cumulative kernels. Of the
    attributes, `pairs` are in the order of their columns and `rows` are the row blocks; the chunk between pair p and
    row block R has the number ``first_chunk[p] + R``; `shift` is the largest entry of u in use, which `row_sums` are
    relative to.
    """

    def __init__(self, starts: NDArray[np.int64], kernels: FloatArray, block: int, *, strict: bool = False) -> None:
        self.starts, self.block, self.n = starts, block, kernels.shape[1]
        self.dtype = kernels.dtype
        n, blocks = self.n, -(-self.n // block)
        edges = np.arange(blocks) * block
        self.rows = Pieces(np.arange(blocks), edges, np.minimum(edges + block, n))
        low = np.union1d(edges, starts)
        self.pairs = Pieces(low // block, low, np.append(low[1:], n))
        self.segment = np.searchsorted(starts, low, side="right") - 1
        first_block = starts // block
        counts = blocks - first_block  # chunks of every kernel
        self._offset = np.concatenate([[0], np.cumsum(counts)])
        self.first_chunk = self._offset[self.segment] - self.pairs.block

        self._halves = np.zeros((starts.size, n), self.dtype)
        self._peaks = np.full((starts.size, blocks), -np.inf)
        for_each(lambda i: self._exponentiate(i, kernels[i], strict), range(starts.size))
        self.shift = float(self._peaks.max())
        self._scale = np.exp(_difference(self._peaks, self.shift))

        before = np.concatenate([np.full((starts.size, 1), -np.inf), self._peaks[:, :-1]], axis=1)
        largest = np.maximum(self._peaks, before)
        self._largest = np.concatenate([row[:count] for row, count in zip(largest, counts, strict=True)])
        self.chunks = self._largest.size
        self._chunks = np.empty((block // 8 + 1, self.chunks, 16), self.dtype)  # by groups of 8 frequencies
        self._norms = np.zeros((self._largest.size, 2))  # ‖·‖₂², ‖·‖₁
        ratio = np.exp(_difference(np.stack([self._peaks, before], axis=-1), largest[..., None])).astype(self.dtype)
        step = max(1, min(_CACHE_BYTES // (2 * block * self.dtype.itemsize), blocks))
        tasks = [(i, delta) for i in range(starts.size) for delta in range(0, int(counts[i]), step)]
        for_each(lambda task: self._transform_kernel(*task, step, ratio), tasks)

    def _exponentiate(self, i: int, u: FloatArray, strict: bool) -> None:
        """Halves ``exp(u_i − peak)``, the peak that of the half's block of lags."""
        block, length = self.block, self.n - int(self.starts[i])
        whole = length // block * block
        for first, last in ((0, whole), (whole, length)):
            if first == last:
                continue
            source = u[first:last].reshape(-1, block if first < whole else last - first)
            target = self._halves[i, first:last].reshape(source.shape)
            np.copyto(target, source)
            if strict and first == 0:
                target[0, 0] = -np.inf
            peaks = target.max(axis=1)
            self._peaks[i, first // block : first // block + peaks.size] = peaks
            peaks[peaks == -np.inf] = 0
            target -= peaks[:, None]
            np.exp(target, out=target)

    def _transform_kernel(self, i: int, first: int, step: int, ratio: FloatArray) -> None:
        offset, end = int(self._offset[i]), int(self._offset[i + 1])
        halves = self._halves[i, : self.n - self.starts[i]]
        with _fft.borrowed("rfft", step, 2 * self.block, self.dtype) as transform:
            blocks_loops.write_chunks(
                halves, ratio[i, : end - offset], first, self.block, transform.input, self._norms[offset:end]
            )
            transform.execute()
            spectra = transform.output.view(self.dtype)[: end - offset - first]
            blocks_loops.chunks_to_groups(spectra, offset + first, self._chunks)

    def chunks_of(self, i: int) -> range:
        """Numbers of the chunks of kernel i, by the distance of its blocks."""
        return range(int(self._offset[i]), int(self._offset[i + 1]))

    def halves(self, i: int) -> FloatArray:
        """``exp(u_i − peak)`` for the lags that are left of the first column of segment i, block by block."""
        return self._halves[i, : self.n - int(self.starts[i])]

    def scales(self, i: int, exponents: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``exp(peak − shift + exponent)`` of every block of lags of kernel i: its chunk's exponent, and the next's."""
        peaks = self._peaks[i, : len(exponents)] - self.shift
        after = np.append(exponents[1:], -np.inf)
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(peaks + exponents), np.exp(peaks + after)

    def kernel(self, i: int) -> NDArray[np.float64]:
        """``exp(u_i − shift)``, in float64, for the lags that are left of the first column of segment i."""
        used = self.n - int(self.starts[i])
        with np.errstate(under="ignore"):
            return np.asarray(self.halves(i) * np.repeat(self._scale[i], self.block)[:used])

    def row_sums(self) -> NDArray[np.float64]:
        """Sum of every row of the matrix, times ``exp(−shift)``: the product with ones, without an FFT's error."""
        return self._sums(blocks_loops.add_window_sums)

    def column_sums(self) -> NDArray[np.float64]:
        """Sum of every column of the matrix, times ``exp(−shift)``."""
        return self._sums(blocks_loops.add_prefix_sums)

    def _sums(self, add: Callable[..., None]) -> NDArray[np.float64]:
        parts = np.zeros((min(_PARTS, self.starts.size), self.n))

        def one(part: int) -> None:
            for i in range(part, self.starts.size, len(parts)):
                add(self.starts, i, self._halves[i], self._scale[i], self.block, np.empty((3, self.n)), parts[part])

        for_each(one, range(len(parts)))
        return np.asarray(parts.sum(axis=0))

    def product(self, x: FloatArray, *, transposed: bool = False) -> FloatArray:
        """Product of the matrix, or of its transpose, with x, times ``exp(−shift)``; see `multiply` for its error.

        Examples
        --------
        >>> import numpy as np
        >>> ones = BlockProduct(np.array([0]), np.zeros((1, 4)), block=2)  # exp(0) on and below the diagonal
        >>> ones.product(np.arange(4.0)[:, None]).round(12).ravel()
        array([0., 1., 3., 6.])
        >>> ones.product(np.arange(4.0)[:, None], transposed=True).round(12).ravel()
        array([6., 6., 5., 3.])
        """
        source, target = (self.rows, self.pairs) if transposed else (self.pairs, self.rows)
        spectra = self.load(x, source)
        exponents, _ = self.multiply(spectra, transposed=transposed)
        y = np.empty_like(x)
        self.store(spectra, target, target.spread(np.exp(exponents - self.shift)), y)
        spectra.release()
        return y

    def load(self, x: FloatArray, pieces: Pieces) -> Spectra:
        """Transform the given pieces of x, shape (n, d)."""
        x = as_input(_even(x))
        width = x.shape[1]
        groups, places = -(-2 * self.block // blocks_loops.GROUP), max(len(self.pairs), len(self.rows))
        values = take_workspace((groups, places, blocks_loops.GROUP, width), self.dtype)
        norms, peaks = np.zeros((2, len(pieces), width // 2))
        columns, rows = np.zeros((len(pieces), width), self.dtype), np.zeros(len(x), self.dtype)

        def one(piece: int) -> None:
            low, high = int(pieces.low[piece]), int(pieces.high[piece])
            at = low - int(pieces.block[piece]) * self.block
            pairs = np.empty(2 * (high - low), self.dtype)
            for first, count in self._batches(width // 2):
                with _fft.borrowed("fft", count, 2 * self.block, self.dtype) as transform:
                    blocks_loops.to_padded_columns(x.view(transform.input.dtype), low, high, first, at, transform.input)
                    blocks_loops.raise_row_sizes(transform.input.view(self.dtype), at, rows[low:high], pairs)
                    transform.execute()
                    blocks_loops.columns_to_groups(transform.output, piece, first, values.view(transform.output.dtype))
            squares, largest = np.empty(width), np.empty(width, self.dtype)
            blocks_loops.column_sizes(x, low, high, squares, columns[piece])
            blocks_loops.group_maxima(values, piece, 2 * self.block, largest)
            with np.errstate(over="ignore"):  # an infinite bound keeps no row
                norms[piece] = np.sqrt(squares[::2] + squares[1::2])
                peaks[piece] = np.hypot(largest[::2], largest[1::2], dtype=np.float64)
            if columns[piece].max() < _SQUARES_VANISH:
                norms[piece] = columns[piece].max() * np.sqrt(2 * (high - low))  # at least the norm

        for_each(one, range(len(pieces)))
        return Spectra(values, norms, peaks, columns.max(axis=0), rows)

    def reach(self, *, transposed: bool = False, exponents: NDArray[np.float64] | None = None) -> Reach:
        """Which chunks meet which pieces in a product, and how they are scaled; see `multiply`."""
        blocks, first_chunk, pair_block = len(self.rows), self.first_chunk, self.pairs.block
        if transposed:
            place = first_chunk[:, None] + np.arange(blocks)
            low, high = pair_block, np.full(len(self.pairs), blocks)
        else:
            place = np.arange(blocks)[:, None] + first_chunk
            low, high = np.zeros(blocks, np.int64), np.searchsorted(pair_block, np.arange(blocks), side="right")
        reached = (np.arange(place.shape[1]) >= low[:, None]) & (np.arange(place.shape[1]) < high[:, None])
        place = np.where(reached, place, 0)
        size = np.where(reached, self._largest[place], -np.inf)
        if exponents is not None:
            size = size + exponents
        shift = size.max(axis=1)
        return Reach(place, low, high, shift, np.exp(_difference(size, shift[:, None])))

    def multiply(
        self,
        spectra: Spectra,
        *,
        transposed: bool = False,
        exponents: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Replace the spectra of x by those of the product, in place.

        Parameters
        ----------
        spectra : Spectra
            Of the pairs of x; transposed, of the row blocks of y.
        transposed : bool, optional
            Multiply by the transposed matrix.
        exponents : ndarray, optional
            x is to be taken times ``exp(exponents[piece])``.

        Returns
        -------
        exponents : ndarray, shape (pieces of the result,)
            What was computed is the product times ``exp(−exponents)``.
        noise : ndarray, shape (pieces of the result,)
            Estimated rounding error of an entry of what was computed.
        """
        place, low, high, shift, weight = reach = self.reach(transposed=transposed, exponents=exponents)
        noise = self.noise_of_columns(reach, spectra, slice(None))
        scaled = (weight / (2 * self.block)).astype(self.dtype)
        width, products = spectra.values.shape[3], int((high - low).sum())

        def some(group: int) -> None:
            blocks_loops.multiply(
                spectra.values,
                self._chunks,
                place,
                scaled,
                low,
                high,
                cast(float, self.dtype.type(-1 if transposed else 1)),
                2 * self.block,
                group,
                np.empty((place.shape[1], 2 * width), self.dtype),
                np.empty((products, 16), self.dtype),
                np.empty((3, 2 * width), self.dtype),
            )

        for_each(some, range(self.block // blocks_loops.GROUP + 1))
        return shift, noise

    def noise_of_columns(self, reach: Reach, spectra: Spectra, columns: slice) -> NDArray[np.float64]:
        """`noise` of some of the complex columns."""
        return self.noise(reach, spectra.norms[:, columns].max(axis=1), spectra.peaks[:, columns].max(axis=1))

    def noise(self, reach: Reach, norms: NDArray[np.float64], peaks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimated rounding error of an entry of what `multiply` computes, one for each piece of the result.

        `norms` and `peaks` are those of the worst complex column of every piece that is multiplied.
        """
        norm, total = np.sqrt(self._norms[:, 0])[reach.place], self._norms[:, 1][reach.place]
        with np.errstate(over="ignore", invalid="ignore"):  # a bound that is not finite keeps no row
            error = convolution_error(
                2 * self.block,
                self.dtype,
                factors=norm * norms,
                product=np.minimum(total * norms, norm * peaks),  # ‖ĝ‖_∞ ‖x‖₂ or ‖g‖₂ ‖x̂‖_∞
            )
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            reached = reach.weight > 0
            rounding = np.hypot.reduce(np.where(reached, reach.weight * error, 0), axis=1)  # whose squares may vanish
            rounding *= np.sqrt(  # the sum over pieces rounds as well
                1 + (reach.high - reach.low) / (4 * max(np.log2(2 * self.block), 1))
            )
            return np.asarray(rounding + self._underflow * np.where(reached, norms, 0).sum(axis=1))

    @property
    def _underflow(self) -> float:
        """What a product loses where its factors or terms are too small for a number, by the norm of the piece."""
        return float(np.finfo(self.dtype).tiny) * (2 * self.block) ** 2

    def store(
        self,
        spectra: Spectra,
        pieces: Pieces,
        factor: NDArray[np.float64],
        y: FloatArray,
        *,
        add: bool = False,
    ) -> None:
        """Transform back: ``y[r] = factor[r] · product[r]`` in the rows of the given pieces, or add it to y.

        Of the product as many columns are taken as y has.
        """
        width = y.shape[1] + y.shape[1] % 2
        target = y if y.shape[1] == width else np.zeros((y.shape[0], width), y.dtype)
        # a row whose factor is larger than any number is zero, or not kept
        factors = np.repeat(np.minimum(factor, np.finfo(self.dtype).max).astype(self.dtype), 2)

        def one(piece: int) -> None:
            low, high = int(pieces.low[piece]), int(pieces.high[piece])
            at = low - int(pieces.block[piece]) * self.block
            for first, columns in self._batches(width // 2):
                with _fft.borrowed("ifft", columns, 2 * self.block, self.dtype) as transform:
                    groups = spectra.values.view(transform.input.dtype)
                    blocks_loops.groups_to_columns(groups, piece, first, transform.input)
                    transform.execute()
                    blocks_loops.scale_columns(transform.output.view(self.dtype), 2 * at, factors[2 * low : 2 * high])
                    rows = target.view(transform.output.dtype)
                    blocks_loops.to_rows(transform.output, at, low, high, first, add, rows)

        for_each(one, range(len(pieces)))
        if target is not y:
            y[...] = y + target[:, : y.shape[1]] if add else target[:, : y.shape[1]]

    def _batches(self, columns: int) -> list[tuple[int, int]]:
        """First and number of the complex columns transformed at once: what keeps the buffers in cache, if not few."""
        step = max(_COLUMNS, _CACHE_BYTES // (4 * self.block * self.dtype.itemsize))
        return [(first, min(step, columns - first)) for first in range(0, columns, step)]


def _even(x: FloatArray) -> FloatArray:
    """Return x with a column of zeros behind it if it has an odd number of them."""
    return x if x.shape[1] % 2 == 0 else np.concatenate([x, np.zeros_like(x[:, :1])], axis=1)


def _difference(a: Any, b: Any) -> NDArray[np.float64]:
    """``a − b``, where −inf minus anything is −inf."""
    return np.asarray(
        np.subtract(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), -np.inf), where=np.isfinite(a))
    )
