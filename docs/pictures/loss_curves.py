"""Held-out loss of a small language model against steps, by attention, from the shipped records."""

from style import BLUE, INK, ORANGE, plt

RECORDS = "trainings"
ATTENTIONS = {
    "exact": (INK, "o", "exact attention"),
    "window": (ORANGE, "s", "16 newest pairs"),
    "sparsek": (BLUE, "^", "16 newest, 16 selected by SparseK"),
}


def draw(rows):
    """Return the figure."""
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    for name, (color, marker, label) in ATTENTIONS.items():
        of_it = [row for row in rows if row["name"] == name]
        steps, losses = ([row[key] for row in of_it] for key in ("step", "held_out_loss"))
        axis.plot(steps, losses, color=color, marker=marker, ms=3, label=label)
    axis.set(xlabel="steps", ylabel="held-out loss, nats a byte")
    axis.legend()
    return figure
