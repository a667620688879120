"""Decoders trained from scratch with conv attention: the loss on the way, and how far the logits are from k-conv."""

import numpy as np
from style import BLUE, GREEN, GREY, ORANGE, RED, plt

from refattn.experiments.scratch.conv_from_scratch import METHODS
from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.readings import at_best_rates

RECORDS = "conv-from-scratch"
LOOKS = {
    "exact": GREY,
    "spread": BLUE,
    "spread, paper's gradient": GREEN,
    "recovered": ORANGE,
    "recovered, paper's gradient": RED,
}


def draw(rows):
    """Return the figure: means and ranges of the seeds, by task."""
    figure, axes = plt.subplots(2, len(METHODS), figsize=(5.8, 4.1), layout="constrained", sharex="col")
    for column, (task, methods) in zip(axes.T, METHODS.items(), strict=True):
        some = [row for row in rows if row["task"] == task]
        if wrong := uneven(some, methods):
            raise ValueError(f"rows: a study of {task} that is not whole came: {'; '.join(wrong)}")
        kept = [row for row in at_best_rates(some) if "step" in row]
        for axis, field in zip(column, ("loss", "residual"), strict=True):
            for method in methods:
                steps = sorted({row["step"] for row in kept if row["method"] == method})
                found = [[r[field] for r in kept if (r["method"], r["step"]) == (method, step)] for step in steps]
                axis.plot(steps, np.mean(found, axis=1), color=LOOKS[method], lw=1, label=method)
                axis.fill_between(steps, np.min(found, axis=1), np.max(found, axis=1), color=LOOKS[method], alpha=0.15)
            axis.set(ylabel={"loss": "loss on validation texts", "residual": "logits from k-conv"}[field])
        column[0].set(title=task)
        column[1].set(xlabel="steps")
    axes[0, 0].legend()
    return figure
