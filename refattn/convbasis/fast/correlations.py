"""Correlations by the block transform: the derivative of ``Σ_i conv(g_i, m_i) x`` with respect to its kernels (ours).

For upstream rows z, the gradient of ``⟨z, Σ_i conv(g_i, m_i) x⟩`` with respect to g_i is a correlation in segment i,

    dg_i[t] = Σ_{j in segment i} z_{j+t} · x_j,

summed over the columns of x and z. With the pairs, row blocks and chunks of `refattn.convbasis.fast.blocks`:

1. chunk δ of kernel i gets ``Ĉ_{i,δ} = Σ_p Σ_c conj(X̂_{p,c}) ∘ Ẑ_{blk(p)+δ, c}`` over the pairs p of segment i: for
   every frequency one product of matrices, (row blocks × columns) by (columns × pairs), summed along its diagonals;
2. one inverse transform a chunk; its first half belongs to the lags of block δ, its second to those of block δ − 1.

What comes back is ``du_i = g_i ∘ dg_i``, the derivative with respect to the logarithm. Time O((n/B)(n/B + k) B d +
kn log B), memory 4 kn numbers beyond the spectra.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn import _fft
from refattn._threads import for_each, one_blas_thread
from refattn._validation import FloatArray
from refattn.convbasis.bounds import convolution_error
from refattn.convbasis.fast import correlations_loops
from refattn.convbasis.fast.blocks import BlockProduct, Spectra
from refattn.convbasis.fast.blocks_loops import GROUP
from refattn.convbasis.guarded.softmax import row_bound

_TILE = 16
"""Row blocks multiplied at once: half of the products above the diagonal are never formed."""


def kernel_gradient(
    product: BlockProduct,
    columns: Spectra,
    rows: Spectra,
    column_exponents: NDArray[np.float64],
    row_exponents: NDArray[np.float64],
) -> tuple[FloatArray, NDArray[np.float64]]:
    """Gradient of ``⟨z, Σ_i conv(exp(u_i − shift), m_i) x⟩`` with respect to the logarithms u_i, shape (k, n).

    `columns` are of x on ``product.pairs`` and `rows` of z on ``product.rows``; x and z are to be taken times the
    exponentials of theirs. Also returned is the estimated rounding error of ``du_i[t]/g_i[t]`` for the lags of a block
    of a kernel, by the chunk's number. The same for any number of threads.
    """
    blocks, length = len(product.rows), 2 * product.block
    place = np.arange(blocks)[:, None] + product.first_chunk
    pair_block = product.pairs.block
    last = np.searchsorted(pair_block, np.arange(blocks), side="right")
    reached = np.arange(pair_block.size) < last[:, None]
    size = np.where(reached, row_exponents[:, None] + column_exponents, -np.inf)
    shift = np.full(product.chunks, -np.inf)
    np.maximum.at(shift, place[reached], size[reached])
    relative = np.zeros(place.shape)
    relative[reached] = np.exp(size[reached] - shift[place[reached]])
    weight = relative.astype(product.dtype)

    x, z = (spectra.values.view(np.result_type(product.dtype, np.complex64)) for spectra in (columns, rows))
    spectra = np.zeros((x.shape[0], GROUP, product.chunks), x.dtype)

    def group(g: int) -> None:
        used = min(GROUP, length - g * GROUP)
        if x.shape[3] == 1:
            pieces = x[g, : pair_block.size], z[g, :blocks]
            correlations_loops.add_correlations_of_one(*pieces, place, weight, last, spectra[g, :used])
            return
        conjugates = x[g, : pair_block.size, :used].conj().transpose(1, 2, 0)
        with np.errstate(all="ignore"):  # what overflows has no bound and is not kept
            for first in range(0, blocks, _TILE):
                tile = z[g, first : min(first + _TILE, blocks), :used].transpose(1, 0, 2)
                pairs = int(last[first + tile.shape[1] - 1])
                products = tile @ conjugates[:, :, :pairs]
                correlations_loops.add_correlations(products, place, weight, first, last, spectra[g])

    with one_blas_thread():
        for_each(group, range(x.shape[0]))
    du = np.zeros((product.starts.size, product.n), product.dtype)
    for_each(lambda i: _write_lags(product, i, spectra, shift, length, du[i]), range(product.starts.size))
    return du, _noise(product, columns, rows, place, relative, shift)


def _noise(
    product: BlockProduct,
    columns: Spectra,
    rows: Spectra,
    place: NDArray[np.int64],
    weight: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Errors of all columns and of all pairs that a chunk collects, added up: alike inputs round alike."""
    length = 2 * product.block
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what is not finite is not kept
        norms = rows.norms @ columns.norms.T
        error = convolution_error(
            length,
            product.dtype,
            factors=norms,
            product=np.minimum(rows.peaks @ columns.norms.T, rows.norms @ columns.peaks.T),
        )
        error += norms * length**2 * float(np.finfo(product.dtype).tiny)  # what underflows
        noise = np.zeros(product.chunks)
        np.add.at(noise, place[weight > 0], (weight * error)[weight > 0])
        noise *= np.exp(shift)
    both = noise.copy()  # the lags of a block come from its own chunk and from the one behind it
    for i in range(product.starts.size):
        chunks = product.chunks_of(i)
        both[chunks.start : chunks.stop - 1] += noise[chunks.start + 1 : chunks.stop]
    return both


def lost_lags(
    product: BlockProduct,
    noise: NDArray[np.float64],
    natural: FloatArray,
    natural_noise: NDArray[np.float64],
    tol: float,
) -> NDArray[np.bool_]:
    """Entries of du whose estimated error exceeds `tol` times their natural size, shape (k, n).

    `noise` and `natural_noise` are those of du and of the natural sizes, which du would be with all signs equal.
    """
    lost = np.zeros(natural.shape, dtype=bool)

    def one(i: int) -> None:
        g, used = product.kernel(i), product.n - int(product.starts[i])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            error, size_error = (g * noise_by_lag(product, each, i) for each in (noise, natural_noise))
            lost[i, :used] = ~(row_bound(error, natural[i, :used], size_error) <= tol)

    for_each(one, range(product.starts.size))
    return lost


def noise_by_lag(product: BlockProduct, noise: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    """The error of ``du_i[t]/g_i[t]`` for every lag that is left of the first column of segment i."""
    chunks = product.chunks_of(i)
    return np.repeat(noise[chunks.start : chunks.stop], product.block)[: product.n - int(product.starts[i])]


def _write_lags(
    product: BlockProduct,
    i: int,
    spectra: NDArray[Any],
    shift: NDArray[np.float64],
    length: int,
    du: FloatArray,
) -> None:
    """Transform the chunks of kernel i back; each lag has its part of its block's chunk and of the one behind it."""
    chunks, used = product.chunks_of(i), product.n - int(product.starts[i])
    most = np.finfo(product.dtype).max  # what a larger scale multiplies is zero, or not kept
    own, behind = (np.minimum(scale, most) for scale in product.scales(i, shift[chunks.start : chunks.stop]))
    with _fft.borrowed("ifft", len(chunks), length, product.dtype) as transform:
        transform.input[...] = spectra.reshape(-1, product.chunks)[:length, chunks.start : chunks.stop].T
        transform.execute()
        lags = transform.output.view(product.dtype)
        halves = product.halves(i)
        correlations_loops.add_lags(lags, halves, own / length, behind / length, product.block, du[:used])
