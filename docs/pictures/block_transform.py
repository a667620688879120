"""The block transform: the matrix in blocks, the chunk of a kernel that a block needs, and the way of the numbers."""

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from style import BLUE, GREEN, GREY, INK, ORANGE, PAPER, plt, smooth_kernels

N, BLOCK, STARTS, ROW, COLUMN = 64, 8, [0, 20, 44], 6, 3
COLOURS = (BLUE, ORANGE, GREEN)


def draw():
    """Return the figure: blocks and chunk above, the steps below."""
    kernels = np.exp(smooth_kernels(N, 3))
    figure, axes = plt.subplot_mosaic(
        "AB;CC", figsize=(9.2, 5.6), height_ratios=(2.6, 1), width_ratios=(1, 1.35), layout="constrained"
    )
    draw_blocks(axes["A"])
    draw_chunk(axes["B"], kernels)
    draw_steps(axes["C"])
    return figure


def draw_blocks(axis) -> None:
    """Draw the lower triangle in blocks of B, coloured by segment, one block marked."""
    segment = np.searchsorted(STARTS, np.arange(N), side="right") - 1
    for column in range(N):
        axis.add_patch(Rectangle((column, column), 1, N - column, color=COLOURS[segment[column]], alpha=0.32, lw=0))
    for edge in range(0, N + 1, BLOCK):
        axis.plot([edge, edge], [edge, N], color=GREY, lw=0.5)
        axis.plot([0, edge], [edge, edge], color=GREY, lw=0.5)
    axis.add_patch(Rectangle((COLUMN * BLOCK, ROW * BLOCK), BLOCK, BLOCK, fill=False, ec=INK, lw=2.2))
    for lag in ((ROW - COLUMN) * BLOCK - BLOCK + 1, (ROW - COLUMN) * BLOCK + BLOCK - 1):
        axis.plot([0, N - lag], [lag, N], color=INK, lw=0.9, ls="--")
    axis.set(xlim=(0, N), ylim=(N, 0), aspect="equal", xticks=[], yticks=[])
    axis.set(xlabel="column block b", ylabel="row block R", title="blocks of B, segments by colour")


def draw_chunk(axis, kernels) -> None:
    """Draw the kernels, and the 2B lags that the marked block reads."""
    low, high = (ROW - COLUMN - 1) * BLOCK, (ROW - COLUMN + 1) * BLOCK
    for i, (kernel, colour) in enumerate(zip(kernels, COLOURS, strict=True), start=1):
        size = N - STARTS[i - 1]
        axis.plot(np.arange(size), kernel[:size], color=colour, label=f"$g_{i} = \\exp(u_{i})$")
    axis.axvspan(low, high, color=GREY, alpha=0.25, lw=0)
    for edge in (low, high):
        axis.axvline(edge, color=INK, lw=0.9, ls="--")
    axis.text(
        (low + high) / 2, 0.93, "one chunk:\n2B lags", ha="center", va="top", transform=axis.get_xaxis_transform()
    )
    axis.set(xlim=(0, N), xlabel="lag r − j", yticks=[], title="what that block needs of the kernels")
    axis.legend(loc="upper right")


def draw_steps(axis) -> None:
    """Draw the way from V to the rows of a block."""
    steps = (
        ("rows of V in a\nblock and segment", "FFT, length 2B"),
        ("spectra $\\hat V_p$:\nn/B + k pairs", "× $\\hat g$ of the chunk,\nsum over pairs"),
        ("spectrum $\\hat Y_R$\nof a row block", "inverse FFT"),
        ("B rows of Y,\nB of overhang", ""),
    )
    axis.set(xlim=(0, 100), ylim=(0, 10))
    axis.axis("off")
    for place, (what, then) in enumerate(steps):
        left = 0.6 + 28.2 * place
        axis.add_patch(FancyBboxPatch((left, 2.8), 14, 5, boxstyle="round,pad=0.4", fc=PAPER, ec=INK, lw=1))
        axis.text(left + 7, 5.3, what, ha="center", va="center", fontsize=8)
        if then:
            axis.add_patch(FancyArrowPatch((left + 14.8, 5.3), (left + 27.4, 5.3), arrowstyle="-|>", mutation_scale=11))
            axis.text(left + 21, 6.0, then, ha="center", va="bottom", fontsize=8)
