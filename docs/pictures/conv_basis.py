"""A conv basis: every column of a segment is the one before, moved down; the matrix is a sum of Toeplitz matrices."""

import numpy as np
from style import BLUE, GREEN, GREY, ORANGE, plt, smooth_kernels

from refattn import ConvBasis
from refattn.convbasis import subconv_matrix

N, STARTS, COLOURS = 60, [0, 22, 42], (BLUE, ORANGE, GREEN)


def draw():
    """Return the figure: H and its terms above, its columns and the kernels below."""
    lengths = N - np.array(STARTS)[:, None]
    basis = ConvBasis(STARTS, np.where(np.arange(N) < lengths, smooth_kernels(N, 3), 0.0))
    figure, axes = plt.subplots(2, 4, figsize=(9.2, 4.6), height_ratios=(1.7, 1), layout="constrained")
    draw_matrices(axes[0], basis)
    draw_columns(axes[1, 0], basis)
    for i, axis in enumerate(axes[1, 1:]):
        size = basis.sizes[i]
        axis.plot(basis.vectors[i, :size], color=COLOURS[i])
        axis.set(xlim=(0, N), xlabel="below the diagonal", title=f"$b_{i + 1}$", yticks=[])
    return figure


def draw_matrices(axes, basis: ConvBasis) -> None:
    """Draw H and the terms conv(b_i, m_i), the starts of the segments marked."""
    terms = [subconv_matrix(b, int(m)) for b, m in zip(basis.vectors, basis.sizes, strict=True)]
    names = ["H", *(f"conv($b_{i}$, $m_{i}$)" for i in (1, 2, 3))]
    for axis, matrix, name, sign in zip(axes, [basis.to_dense(), *terms], names, ("", "=", "+", "+"), strict=True):
        limit = np.abs(matrix).max()
        shown = np.ma.masked_where((matrix == 0) | ~np.tri(N, dtype=bool), matrix)
        axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set(title=name, xticks=[], yticks=[])
        axis.text(-0.12, 0.5, sign, transform=axis.transAxes, fontsize=16, ha="center", va="center")
        for start, colour in zip(STARTS, COLOURS, strict=True):
            axis.axvline(start - 0.5, color=colour, lw=1.5)
        axis.plot([0, N - 1], [0, N - 1], color=GREY, lw=0.8)


def draw_columns(axis, basis: ConvBasis) -> None:
    """Draw every column of H from its diagonal down: inside a segment they are one curve."""
    dense = basis.to_dense()
    for column, segment in enumerate(basis.segments()):
        axis.plot(dense[column:, column], color=COLOURS[segment], lw=1)
    axis.set(xlim=(0, N), xlabel="below the diagonal", title=f"all {N} columns of H", yticks=[])
