"""Conv attention near-linearly, with no row lost: the block transform, guarded, or a direct product (ours).

``N = Σ_i conv(g_i, m_i) V`` comes from `refattn.convbasis.fast.blocks`; the denominators D are row sums of the same
matrix, of positive numbers, by plain additions. Only N has an FFT's error. The error of every row is estimated from
norms of the very vectors that are multiplied, and compared with the row's natural size, ``Σ_j f_rj ‖v_j‖_∞``: what it
would be if nothing cancelled. Rows above the tolerance are computed from their logits (`refattn.convbasis.fast.rows`).
A row is inside the tolerance or recomputed, never neither. The same holds of products with the transpose.

Two real columns share one complex transform, whose error is relative to the larger: columns of very different size are
brought to units of their own first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import as_input
from refattn._memory import require_memory
from refattn._threads import ComputedOnce, for_each
from refattn._validation import FloatArray, require_finite
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.fast import blocks_loops
from refattn.convbasis.fast.blocks import BlockProduct, Spectra
from refattn.convbasis.fast.cost import (
    Plan,
    block_transform_bytes,
    block_transform_work,
    choose_plan,
    direct_work,
    estimated_seconds,
)
from refattn.convbasis.fast.rows import Segments, row_tiles, write_columns, write_log_sum_exp, write_rows
from refattn.convbasis.guarded.softmax import RowReport, row_bound
from refattn.convbasis.guarded.units import common_units, scaled

_SAFE = {"float64": (1e-140, 1e140), "float32": (1e-24, 1e24)}
"""Sizes between which neither sums and squares of numbers overflow, nor what counts of those vanishes."""
UNEVEN = 64
"""Columns whose sizes differ by more are brought to units of their own."""


def plan_head(v: FloatArray, lower: ConvBasis, upper: ConvBasis | None) -> Plan:
    """Choose the cheapest plan by the number of segments found."""
    k = max(int(basis.n_terms) for basis in (lower, upper) if basis is not None)
    return choose_plan(lower.n, k, v.shape[1], v.dtype)


class Transposed(NamedTuple):
    """A product of the transpose with the kept rows, to which its parts are added, and the error of every row."""

    y: FloatArray
    error: NDArray[np.float64]


class FastSoftmax:
    """The paper's f of one head, ready for products: `refattn.convbasis.guarded.softmax.Softmax`, near-linearly.

    `width`, the columns of what it will be multiplied with, serves the estimate of the memory. `below` and `above` are
    the two parts of ``exp(logits)``: None on the direct path, as `above` for causal attention. `shift` is the largest
    logit and `total` the row sums D of ``exp(logits − shift)``, in float64 and without an FFT's error; empty on the
    direct path.
    """

    def __init__(self, lower: ConvBasis, upper: ConvBasis | None, plan: Plan, width: int, tol: float) -> None:
        self.n, self.plan, self.tol, self.dtype = lower.n, plan, tol, lower.kernels.dtype
        self.lower, self.upper = _covering(lower), None if upper is None else _covering(upper)
        self.below: BlockProduct | None = None
        self.above: BlockProduct | None = None
        self.shift, self.total = 0.0, np.zeros(0)
        if plan.path == "direct":
            return
        terms = len(self.lower[0]) + (0 if self.upper is None else len(self.upper[0]))
        require_memory("v: the block transform", block_transform_bytes(lower.n, terms, width, self.dtype, plan.block))
        self.below = BlockProduct(*self.lower, plan.block)
        self.shift = self.below.shift
        if self.upper is not None and self.n > 1:  # one row has nothing above its diagonal
            self.above = BlockProduct(*self.upper, plan.block, strict=True)
            self.shift = max(self.shift, self.above.shift)
        with np.errstate(under="ignore"):
            self.total = self.below.row_sums() * np.exp(self.below.shift - self.shift)
            if self.above is not None:
                self.total += self.above.column_sums() * np.exp(self.above.shift - self.shift)

    @ComputedOnce
    def lost(self) -> NDArray[np.int64]:
        """Rows of f that are so small in their block of the matrix that an FFT loses them whatever it multiplies.

        All rows on the direct path. Their D may have underflowed.
        """
        if self.below is None:
            return np.arange(self.n)
        error = _noise_of_signs(self.below, transposed=False)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bound = error * np.exp(self.below.shift - self.shift) / self.total
            if self.above is not None:
                error = _noise_of_signs(self.above, transposed=True)
                bound = np.hypot(bound, error * np.exp(self.above.shift - self.shift) / self.total)
        return np.flatnonzero(~(bound <= self.tol))

    @ComputedOnce
    def log_sum_exp(self) -> NDArray[np.float64]:
        """Logarithm of the row sums of ``exp(logits)``, accurate in every row."""
        found = np.full(self.n, np.nan)
        kept = np.ones(self.n, dtype=bool)
        kept[self.lost] = False
        found[kept] = np.log(self.total[kept]) + self.shift
        write_log_sum_exp(self.lost, self.lower, self.upper, found)
        return found

    def in_float64(self) -> FastSoftmax:
        """The same operator in float64."""
        one, two = (
            None if part is None else ConvBasis._trusted(part[0], part[1].astype(np.float64))
            for part in (self.lower, self.upper)
        )
        assert one is not None
        return FastSoftmax(one, two, self.plan, 1, self.tol)

    def product(self, w: FloatArray) -> tuple[FloatArray, RowReport]:
        """``f w``, shape (n, d), and what became of its rows."""
        y = np.empty_like(w)
        return y, self.write(w, y)

    def write(self, v: FloatArray, out: FloatArray) -> RowReport:
        """Write ``f v`` to `out`, every row within the tolerance of its natural size, or computed directly.

        The report has all rows on the direct path.
        """
        if self.below is None:
            write_rows(np.arange(self.n), v, self.lower, self.upper, out)
            return RowReport(np.arange(self.n), 0.0)
        error, columns, sizes = self._write_block_transform(self.below, v, out)
        if not _even(columns) and np.isfinite(v).all():
            exponent = common_units(columns, 1)
            sizes = scaled(sizes, -np.max(exponent))
            v = scaled(v, -exponent)
            error, columns, _ = self._write_block_transform(self.below, v, out)
            report = self._judged(v, out, error, columns, sizes)
            out[...] = scaled(out, exponent)
            require_finite("v: output", out)
            return report
        return self._judged(v, out, error, columns, sizes)

    def _judged(
        self, v: FloatArray, out: FloatArray, error: NDArray[np.float64], columns: FloatArray, sizes: FloatArray
    ) -> RowReport:
        """Compute the rows of `out` whose error is too large for the natural size, that of averages of `sizes`."""
        empty = np.flatnonzero(columns == 0)
        out[:, empty[~v[:, empty].any(axis=0)]] = 0  # NaN is not empty
        least = np.minimum.accumulate(sizes) if self.above is None else np.full(self.n, sizes.min())  # an average
        bound = row_bound(error, least, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            doubtful = ~(bound <= self.tol) & (error <= self.tol * sizes.max())
        if self._direct_seconds(doubtful, v.shape[1]) > self._seconds_of_sizes:
            natural, natural_error = self._row_averages(sizes)
            bound = np.minimum(bound, row_bound(error, natural, natural_error))
        kept = bound <= self.tol  # NaN is not kept
        lost = np.flatnonzero(~kept)
        if lost.size:
            write_rows(lost, v, self.lower, self.upper, out)
        return RowReport(lost, float(bound[kept].max(initial=0.0)))

    def transposed_product(self, w: FloatArray) -> tuple[FloatArray, RowReport]:
        """``fᵀ w``, shape (n, d), and what became of its rows, which are the keys'.

        Every row is within the tolerance of its natural size, ``Σ_i f_ij ‖w_i‖_∞``, or computed directly. Rows of f
        that an FFT loses are left out of the transforms and enter by their own weights.
        """
        columns, sizes = sizes_of(w)
        exponent = common_units(columns, UNEVEN)
        w, sizes = scaled(w, -exponent), scaled(sizes, -np.max(exponent))
        found = self.empty_product(w.shape[1])
        if self.below is not None and self.lost.size < self.n:
            self._add_transposed(w, found)
        report = self.finish_transposed(w, found, columns, sizes)
        return scaled(found.y, exponent), report

    def empty_product(self, width: int) -> Transposed:
        """Return a product of the transpose to which nothing was added yet."""
        return Transposed(np.zeros((self.n, width), self.dtype), np.zeros(self.n))

    def finish_transposed(self, w: FloatArray, found: Transposed, columns: FloatArray, sizes: FloatArray) -> RowReport:
        """Make of the product of the transpose with the kept rows the whole, and guard it.

        `columns` and `sizes` are the largest absolute entries of the columns and of the rows of w.
        """
        y, of_sizes = found.y, self.empty_product(1)
        if found.error.any():
            self._add_transposed(sizes[:, None], of_sizes)
        natural = of_sizes.y[:, 0]
        for tile, seen, weights in row_tiles(self.lost, self.lower, self.upper):
            y[:seen] += weights @ w[tile]
            natural[:seen] += weights @ sizes[tile]
        empty = np.flatnonzero(columns == 0)
        y[:, empty] = 0
        bound = row_bound(found.error, natural, of_sizes.error)
        kept = bound <= self.tol
        lost = np.flatnonzero(~kept)
        if lost.size:
            write_columns(lost, w, self.log_sum_exp, self.lower, self.upper, y)
        return RowReport(lost if self.below is not None else np.arange(self.n), float(bound[kept].max(initial=0.0)))

    def scale_rows(self, w: FloatArray) -> NDArray[np.float64]:
        """Make ``w/D`` of w, zero in the lost rows, each block of rows times ``exp(−exponents[block])``.

        1/D varies over many decades, so every block of rows has its own unit, the largest 1/D in it.
        """
        factor, exponents = self._row_factors
        with np.errstate(under="ignore"):
            w *= factor
        return exponents

    @ComputedOnce
    def _row_factors(self) -> tuple[FloatArray, NDArray[np.float64]]:
        block = self.plan.block
        size = np.full(self.n, -np.inf)
        kept = np.ones(self.n, dtype=bool)
        kept[self.lost] = False
        size[kept] = -np.log(self.total[kept])
        exponents = np.maximum.reduceat(size, np.arange(0, self.n, block))
        exponents[exponents == -np.inf] = 0
        with np.errstate(under="ignore"):
            return np.exp(size - np.repeat(exponents, block)[: self.n]).astype(self.dtype)[:, None], exponents

    def _add_transposed(self, w: FloatArray, found: Transposed) -> None:
        """Add the product of the transpose with the kept rows."""
        z = w.copy()
        exponents = self.scale_rows(z)
        for product in (self.below, self.above):
            if product is not None:
                spectra = product.load(z, product.pairs if product is self.above else product.rows)
                self.add_transposed(product, spectra, exponents, found)
                spectra.release()

    def add_transposed(
        self, product: BlockProduct, spectra: Spectra, exponents: NDArray[np.float64], found: Transposed
    ) -> None:
        """Add one part's product of the transpose with rows that are loaded, of which `found` has the first columns.

        The rows of the upper part are the columns of the matrix of the transposed logits.
        """
        upper, y = product is self.above, found.y
        target = product.rows if upper else product.pairs
        own = exponents[product.pairs.block] if upper else exponents
        used = slice(-(-y.shape[1] // 2))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            noise = product.noise_of_columns(product.reach(transposed=not upper, exponents=own), spectra, used)
            reached, _ = product.multiply(spectra, transposed=not upper, exponents=own)
            factor = target.spread(np.exp(reached - self.shift))
            product.store(spectra, target, factor, y, add=True)
            found.error[:] = np.hypot(found.error, target.spread(noise) * factor)

    @ComputedOnce
    def _seconds_of_sizes(self) -> float:
        """What the product with one column of sizes takes, by the model."""
        return estimated_seconds(block_transform_work(self.n, len(self.lower[0]), 1, self.dtype, self.plan.block))

    def _direct_seconds(self, rows: NDArray[np.bool_], width: int) -> float:
        """What the given rows take directly, by the model."""
        seen = rows.sum() * self.n if self.upper is not None else rows @ np.arange(1, self.n + 1)
        share = 2 * float(seen) / self.n**2
        return share * estimated_seconds(direct_work(self.n, width, self.dtype))

    def _row_averages(self, sizes: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``f`` times one column of sizes, and the estimated error of every row."""
        assert self.below is not None
        average = np.empty((self.n, 1), self.dtype)
        error, _, _ = self._write_block_transform(self.below, sizes[:, None], average)
        return average[:, 0].astype(np.float64), error

    def _write_block_transform(
        self, below: BlockProduct, v: FloatArray, out: FloatArray
    ) -> tuple[NDArray[np.float64], FloatArray, FloatArray]:
        """Write every row; return the estimated error of each, and the sizes of the columns and of the rows of v."""
        above, shift, total = self.above, self.shift, self.total
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            spectra = below.load(v, below.pairs)
            exponents, noise = below.multiply(spectra)
            factor = below.rows.spread(np.exp(exponents - shift)) / total
            below.store(spectra, below.rows, factor, out)
            spectra.release()
            columns, sizes = spectra.columns[: v.shape[1]], spectra.rows
            error = below.rows.spread(noise) * factor
            if above is not None:
                spectra = above.load(v, above.rows)
                exponents, noise = above.multiply(spectra, transposed=True)
                factor = above.pairs.spread(np.exp(exponents - shift)) / total
                above.store(spectra, above.pairs, factor, out, add=True)
                spectra.release()
                error = np.hypot(error, above.pairs.spread(noise) * factor)
            return np.asarray(error), columns, sizes


def _noise_of_signs(product: BlockProduct, *, transposed: bool) -> NDArray[np.float64]:
    """Estimated error of every row of a product with entries that are ±1 at random, times ``exp(−shift)``."""
    source, target = (product.rows, product.pairs) if transposed else (product.pairs, product.rows)
    reach = product.reach(transposed=transposed)
    norms = np.sqrt(2.0 * (source.high - source.low))
    noise = product.noise(reach, norms, norms * np.sqrt(2 * np.log(4 * product.block)))  # the largest of 2B amplitudes
    with np.errstate(over="ignore", under="ignore"):
        return target.spread(noise * np.exp(reach.shift - product.shift))


def _even(columns: FloatArray) -> bool:
    """Whether columns of these sizes may be transformed together as they are."""
    low, high = _SAFE[columns.dtype.name]
    used = columns[columns > 0]
    return not used.size or bool(low < used.min() and used.max() < high and used.max() <= UNEVEN * used.min())


def sizes_of(w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Largest absolute entry of every column and of every row."""
    w, step = as_input(w), 4096
    firsts = range(0, len(w), step)
    columns, rows = np.zeros((len(firsts), w.shape[1]), w.dtype), np.zeros(len(w), w.dtype)

    def one(part: int) -> None:
        first = part * step
        blocks_loops.row_and_column_sizes(w, first, min(first + step, len(w)), columns[part], rows)

    for_each(one, range(len(firsts)))
    return columns.max(axis=0), rows


def _covering(basis: ConvBasis) -> Segments:
    """Starts and kernels in use, with a first segment of zeros where columns come before the first start."""
    used = int(basis.n_terms)
    starts, kernels = basis.starts[:used], basis.kernels[:used]
    if starts[0] > 0:
        starts = np.concatenate([[0], starts])
        kernels = np.concatenate([np.zeros_like(kernels[:1]), kernels])
    return starts, as_input(kernels)
