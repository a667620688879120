"""How the pictures look: one palette, opaque paper that reads on light and on dark pages, the same bytes every time."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a8a8a"
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

PAPER, INK = "#fbfbf8", "#2b2b2b"

plt.rcParams.update(
    {
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "font.size": 9,
        "legend.frameon": True,
        "legend.facecolor": PAPER,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.9,
        "legend.fontsize": 8,
        "figure.dpi": 115,
    }
)


def smooth_kernels(n: int, count: int):
    """Return kernels for an example, shape (count, n): waves that die away, each another one."""
    t = np.arange(n)
    rates = ((18, 5.0, 0.4), (30, 9.0, 2.6), (14, 4.0, 5.0))[:count]
    return np.stack([1.6 * np.exp(-t / decay) * np.cos(t / period + phase) for decay, period, phase in rates])


def save(figure, path: Path) -> None:
    """Write a picture without a date or a version in it."""
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(figure)
