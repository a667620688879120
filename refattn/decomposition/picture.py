"""The picture of a head: its logits, what the basis leaves of them, and errors against k (ours)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.decomposition.measure import HeadReport

COLOURS = {
    "uniform, columns": ("#d55e00", "o"),
    "uniform, least squares": ("#0072b2", "s"),
    "best, least squares": ("#009e73", "D"),
}
"""Colours that are told apart without red and green, and by markers."""


def picture(report: HeadReport, title: str) -> bytes:
    """Draw a head under a title, which is shown as it is, and return the PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9.5), layout="constrained", dpi=110)
    shown = title.encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
    figure.suptitle(shown, fontsize=13, parse_math=False, usetex=False)
    maps, lines = figure.subplots(2, 2, height_ratios=[1.25, 1]).reshape(2, 2)
    document = report.document
    n = document["n"]
    seen = np.tri(n, dtype=bool)
    span = _span(report.head.logits[seen]) or 1.0
    terms = "term leaves" if document["terms"] == 1 else "terms leave"
    for axes, values, most, what in (
        (maps[0], report.head.logits, span, "Logits H, and the starts of the best basis"),
        (
            maps[1],
            report.residual,
            max(_span(report.residual[seen]), span / 100),
            f"What {document['terms']} {terms}: H − H′",
        ),
    ):
        image = axes.imshow(
            np.where(seen, values, np.nan), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="antialiased"
        )
        axes.set(title=what, xlabel="column j (key)", ylabel="row i (query)")
        figure.colorbar(image, ax=axes, shrink=0.85, extend="both")
        _mark_starts(axes, report)
    _draw_columns(lines[0], report)
    _draw_curve(lines[1], report)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _span(values: NDArray[np.float64]) -> float:
    """What all but a two-hundredth of the values stay within."""
    return float(np.percentile(np.abs(values), 99.5))


def _mark_starts(axes: Any, report: HeadReport) -> None:
    n = report.document["n"]
    for start in report.basis.starts[report.basis.starts > 0]:
        axes.plot([start - 0.5] * 2, [start - 0.5, n - 0.5], color="black", linewidth=0.6, alpha=0.7)


def _draw_columns(axes: Any, report: HeadReport) -> None:
    n = report.document["n"]
    rows = np.arange(n, 0, -1)
    for values, label, colour in (
        (report.head.logits, "logits", "#999999"),
        (report.residual, "residual", "#0072b2"),
    ):
        axes.plot(np.sqrt((values**2).sum(axis=0) / rows), color=colour, linewidth=1.0, label=label)
    for start in report.basis.starts[report.basis.starts > 0]:
        axes.axvline(start - 0.5, color="black", linewidth=0.6, alpha=0.5)
    axes.set(title="Root mean square of every column", xlabel="column j (key)", xlim=(0, max(n - 1, 1)))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_curve(axes: Any, report: HeadReport) -> None:
    document = report.document
    field, name = ("output", "output ‖Y − Ỹ‖ / ‖Y‖") if report.head.v is not None else ("mean_row", "mean row ‖a − ã‖₁")
    for kind, (colour, marker) in COLOURS.items():
        points = [(p["k"], max(p[field], 1e-16)) for p in document["curve"] if p["starts"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.3, label=kind)
    axes.set(title="Error of attention against k", xlabel="terms k", ylabel=name, xscale="log", yscale="log")
    axes.set_xticks([p["k"] for p in document["curve"] if p["starts"] == "uniform, columns"][::2])
    axes.minorticks_off()
    axes.get_xaxis().set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
