"""Relative error of conv attention against k on the heads of a real model, from the shipped records."""

import numpy as np
from style import BLUE, GREEN, GREY, ORANGE, plt

RECORDS = "error-against-k"

CHOICES = (
    ("uniform", {"starts": "uniform"}, ORANGE),
    ("best in the least-squares sense", {"starts": "best"}, BLUE),
    ("Recover, T = 16, δ = 16 σ", {"starts": "recover", "probe": 16, "delta": 1.0, "eps": 0.0}, GREEN),
)
"""Starts: their name, the fields of their records, their colour."""


def draw(rows):
    """Return the figure: one panel for every length, medians over heads with the middle 80 %."""
    lengths = sorted({row["n"] for row in rows})
    figure, axes = plt.subplots(
        1, len(lengths), figsize=(4.6 * len(lengths), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, n in zip(axes[0], lengths, strict=True):
        for name, fields, colour in CHOICES:
            chosen = [row for row in rows if row["n"] == n and all(row.get(key) == fields[key] for key in fields)]
            draw_band(axis, chosen, name, colour)
        axis.axhline(1.0, color=GREY, lw=0.8, ls=":")
        axis.set(xscale="log", yscale="log", xlabel="k", title=f"n = {n:,}")
    axes[0, 0].set_ylabel("‖Y − Ỹ‖ / ‖Y‖")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_band(axis, rows, name, colour) -> None:
    """Draw the median error for every k that most heads have, and the band between the tenth and the ninetieth."""
    heads = {k: [row["error"] for row in rows if row["k"] == k] for k in {row["k"] for row in rows}}
    most = max(map(len, heads.values()), default=0)
    counts = sorted(k for k, errors in heads.items() if len(errors) > most / 2)
    if counts:
        low, middle, high = np.array([np.percentile(heads[k], [10, 50, 90]) for k in counts]).T
        axis.fill_between(counts, low, high, color=colour, alpha=0.18, lw=0)
        axis.plot(counts, middle, color=colour, marker="o", ms=3, label=name)
