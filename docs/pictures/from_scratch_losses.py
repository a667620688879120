"""Decoders trained from scratch to recall: the loss on the way, by method."""

from from_scratch import LOOKS, whole
from style import GREY, plt

from refattn.experiments.scratch.readings import at_best_rates

RECORDS = "from-scratch"


def draw(rows):
    """Return the figure: the first seed at each method's best rate; earlier sparse methods look alike."""
    kept = [row for row in at_best_rates(whole(rows)) if row["seed"] == 0 and "step" in row]
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    for method, (colour, _) in LOOKS.items():
        some = [row for row in kept if row["method"] == method]
        look = {"color": colour, "lw": 1, "ls": "--" if method in ("random features", "sparsek") else "-"}
        label = method if colour != GREY else "earlier sparse ones" if method == "window" else None
        axis.plot([row["step"] for row in some], [row["loss"] for row in some], label=label, **look)
    axis.set(xlabel="steps", ylabel="loss on validation texts, first seed")
    axis.legend()
    return figure
