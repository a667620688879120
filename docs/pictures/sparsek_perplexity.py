"""Perplexity of a language model by attention and length, every head replaced, from the shipped records."""

from style import BLUE, GREEN, GREY, INK, ORANGE, plt

from refattn.experiments.sparsek.perplexity import perplexities

RECORDS = "sparsek-perplexity"

ATTENTIONS = {
    "exact": ("exact", INK),
    "window-sinks": ("window + 4 sinks", GREY),
    "ridge": ("SparseK, ridge scores", GREEN),
    "learned": ("SparseK, learned on 2,048 tokens", ORANGE),
    "long": ("SparseK, learned on 8,192 tokens", BLUE),
}
"""Name and colour of every attention."""


def draw(rows):
    """Return the figure: a panel for every budget, lengths from left to right, 95 % intervals."""
    found = [one for one in perplexities(rows) if one.attention in ATTENTIONS]
    lengths = sorted({one.n for one in found})
    budgets = sorted({one.budget for one in found if one.attention != "exact"}, reverse=True)
    figure, axes = plt.subplots(1, len(budgets), figsize=(9.2, 4.2), sharey=True, squeeze=False, layout="constrained")
    for axis, budget in zip(axes[0], budgets, strict=True):
        for place, (attention, (name, colour)) in enumerate(ATTENTIONS.items()):
            points = [one for one in found if one.attention == attention and one.budget in (budget, one.n)]
            at = [lengths.index(one.n) + 0.13 * (place - 2) for one in points]
            spread = [[one.value - one.low for one in points], [one.high - one.value for one in points]]
            axis.errorbar(at, [one.value for one in points], spread, fmt="o", ms=4, color=colour, label=name)
        axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        axis.set(xlabel="tokens a window", title=f"{budget} pairs a query")
    axes[0, 0].set_ylabel("perplexity of SmolLM2-135M")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
