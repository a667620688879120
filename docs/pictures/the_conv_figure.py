"""Error against k at the scale of the authors' code and at the model's, beside the running mean, from the records."""

from style import BLUE, GREEN, GREY, ORANGE, RED, plt

RECORDS = "conv-figure-long"

METHODS = (("first", "first k columns", BLUE), ("uniform", "uniform starts", ORANGE), ("window", "window", GREEN))

SHOWN = 0.008
"""Where the authors' axis ends."""


def draw(rows):
    """Return the figure: their axes and scale on the left, the same with all there is to see, and the model's scale."""
    n = max(row["n"] for row in rows)
    rows = [row for row in rows if row["n"] == n and row["positions"] == "zero"]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    panels = (("1/d", "their setting and axes"), ("1/d", "their setting"), ("1/sqrt(d)", "the model's scale, 1/√d"))
    for axis, (scale, title) in zip(axes, panels, strict=True):
        mean = next(row["error"] for row in rows if row["scale"] == scale and row["method"] == "mean")
        axis.axhline(mean, color=GREY, ls="--", label="running mean of V")
        for method, name, colour in METHODS:
            found = [row for row in rows if row["scale"] == scale and row["method"] == method]
            axis.plot([r["k"] for r in found], [r["error"] for r in found], color=colour, marker="o", ms=3, label=name)
        axis.set(xscale="log", xlabel="k", title=f"{title}, n = {n:,}", ylim=(0, None))
    axes[0].set_ylim(0, SHOWN)
    if min(row["error"] for row in rows if row["scale"] == "1/d") > SHOWN:
        axes[0].text(0.5, 0.5, "nothing of ours is as low", ha="center", transform=axes[0].transAxes, color=GREY)
    axes[1].axhspan(0, SHOWN, color=RED, alpha=0.3, lw=0, label="what their axis shows")
    axes[0].set_ylabel("‖Y − Ỹ‖ / ‖Y‖")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
