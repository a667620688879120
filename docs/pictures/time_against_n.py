"""Seconds against n, every method, forward and training, from the shipped records."""

from style import BLUE, GREEN, GREY, INK, ORANGE, RED, plt

RECORDS = "time-against-n"

METHODS = {
    "exact": ("exact, NumPy", INK),
    "torch": ("exact, PyTorch", GREY),
    "conv": ("conv, k = 16", BLUE),
    "paper": ("conv, Algorithm 1 as written", RED),
    "low rank": ("random features, r = 256", GREEN),
    "SparseK": ("SparseK, 128 + window of 128", ORANGE),
}
"""Name and colour of every method."""


def draw(rows):
    """Return the figure: forward and training, on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), sharey=True, layout="constrained")
    for axis, training, title in zip(axes, (False, True), ("forward", "forward and backward"), strict=True):
        for method, (name, colour) in METHODS.items():
            chosen = [row for row in rows if row["method"] == method and row["training"] == training]
            points = sorted((row["n"], row["seconds"]) for row in chosen)
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="n", title=title)
    axes[0].set_ylabel("seconds, one head of width 64")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
