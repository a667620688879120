"""Loss of a small language model against steps, in training and held out, from the shipped records."""

from style import BLUE, GREY, INK, plt

RECORDS = "trainings"


def draw(rows):
    """Return the figure."""
    figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    steps = [row["step"] for row in rows]
    axis.plot(steps, [row["loss"] for row in rows], color=BLUE, marker="o", ms=3, label="the step's batch")
    axis.plot(steps, [row["held_out_loss"] for row in rows], color=INK, marker="o", ms=3, label="held-out plays")
    axis.axhline(5.55, color=GREY, lw=0.8, ls=":", label="knowing nothing: log 257")
    axis.set(xlabel="steps", ylabel="loss, nats a byte")
    axis.legend()
    return figure
