"""The report's figures as PDF files, for a paper: drawn by Matplotlib from the points of the SVG pictures (ours)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from refattn.report.figures import Figure
from refattn.report.svg import axis_text, round_values, widened

STYLES = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", ":"), ("#555555", "D", "-."))
"""Colour, marker and dashes of the curves: told apart without colour, as on the page."""


def pdf(figure: Figure) -> bytes:
    """Return a figure as a PDF file, as wide as a column, with logarithmic axes; the same bytes for the same points."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({"pdf.fonttype": 42, "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        canvas = Canvas(figsize=(3.5, 2.8), layout="constrained")
        axes = canvas.subplots()
        for place, curve in enumerate(figure.curves):
            colour, marker, dashes = STYLES[place % len(STYLES)]
            x, y = zip(*curve.points, strict=True)
            axes.plot(x, y, color=colour, marker=marker, linestyle=dashes, markersize=4, label=curve.name)
        if figure.guide:
            axes.axhline(figure.guide[0], color="black", linewidth=0.8, label=figure.guide[1])
        xs = [x for x, _ in figure.table]
        ys = [y for curve in figure.curves for _, y in curve.points] + ([figure.guide[0]] if figure.guide else [])
        limits = widened(min(ys), max(ys), 1.5)
        axes.set(xscale="log", yscale="log", xlim=widened(xs[0], xs[-1], 1.15), ylim=limits)
        axes.minorticks_off()
        across, up = _apart(xs), round_values(*limits)
        axes.set_xticks(across, [axis_text(value) for value in across])
        axes.set_yticks(up, [axis_text(value) for value in up])
        axes.set_xlabel(figure.x, parse_math=False)
        axes.set_ylabel(figure.y, parse_math=False)
        for text in canvas.legend(loc="outside upper left", fontsize=6.5, ncols=2, frameon=False).get_texts():
            text.set_parse_math(False)
        content = io.BytesIO()
        canvas.savefig(content, format="pdf", metadata={"CreationDate": None, "Title": figure.title})
    return content.getvalue()


def _apart(values: Sequence[float]) -> list[float]:
    """The measured places, less those that are too near to the one before to have a number of their own."""
    found: list[float] = []
    least, most = min(values), max(values)
    for value in values:
        if not found or math.log(value / found[-1]) > math.log(most / least) / 7:
            found.append(value)
    return found
