"""Held-out loss of a small language model against steps, one curve for every attention, from the shipped records."""

from style import BLUE, INK, ORANGE, plt

RECORDS = "trainings"

ATTENTIONS = {
    "exact": ("exact", INK),
    "window": ("the 16 newest", ORANGE),
    "sparsek": ("the 16 newest and 16 selected (SparseK)", BLUE),
}
"""Name of the configuration: name and colour of its curve."""


def draw(rows):
    """Return the figure."""
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    for name, (label, colour) in ATTENTIONS.items():
        points = [(row["step"], row["held_out_loss"]) for row in rows if row["name"] == name]
        axis.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=label)
    axis.set(xlabel="steps", ylabel="held-out loss, nats a byte")
    axis.legend()
    return figure
