"""Logits, of which the Conv-Basis authors draw maps, and attention: both of the same heads of a language model."""

import numpy as np
from style import plt

from refattn.experiments.conv.maps import maps_of

TOKENS = 48

HEADS = ((0, 0), (12, 0), (29, 0))
"""Layer and head: the first layer, one in the middle, the last."""


def draw():
    """Return the figure: a column for every head, its logits above, its attention below."""
    figure, axes = plt.subplots(2, len(HEADS), figsize=(7.6, 4.4), layout="constrained", sharex=True, sharey=True)
    for (layer, head), above, below in zip(HEADS, *axes, strict=True):
        logits, attention = maps_of(layer, head, TOKENS)
        limit = np.nanmax(np.abs(logits))
        image = above.imshow(logits, vmin=-limit, vmax=limit, cmap="coolwarm", interpolation="nearest")
        above.set_title(f"logits: layer {layer}")
        bar = figure.colorbar(image, ax=above, shrink=0.8)
        shown = np.where(attention > 0, np.log10(np.maximum(attention, 1e-6)), np.nan)
        image = below.imshow(shown, vmin=-5, vmax=0, cmap="viridis", interpolation="nearest")
        below.set(title=f"attention: layer {layer}", xlabel="key")
    bar.set_label("logit less the mean")
    figure.colorbar(image, ax=axes[1], shrink=0.8, label="log₁₀ attention")
    for ax in axes[:, 0]:
        ax.set_ylabel("query")
    return figure
