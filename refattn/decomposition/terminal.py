"""A head's report in the terminal (ours)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

KINDS = ("uniform, columns", "uniform, least squares", "best, least squares")


def print_head(document: dict[str, Any], console: Console) -> None:
    """Print what was measured of one head: terms, errors against k, segments, bounds, the answer."""
    place = ",".join(map(str, document["head"]))
    about = f": n = {document['n']}, logit deviation {document['deviation']:.3g}"
    console.print(Text.assemble("\n", (f"head {place or '-'}", "bold"), about))
    console.print(
        f"exact basis: {document['exact_terms']} terms (logits equal within rounding, at most"
        f" {document['exact_atol']:.2g});"
        f" any matrix has one with at most {document['n']}"
    )
    console.print(_answer(document))
    console.print(_curve(document))
    console.print(_segments(document))
    bounds = document["bounds"]
    unit = f"‖V‖∞ = {bounds['largest_value']:.4g}" if bounds["values_given"] else "no values: in units of ‖V‖∞"
    measured = f"; measured {bounds['largest_output']:.3g}" if bounds["values_given"] else ""
    console.print(
        f"bounds with these {document['terms']} terms ({unit}): r = ‖H − H′‖∞ = {bounds['residual']:.3g},"
        f" 2 (eʳ − 1) ‖V‖∞ = {bounds['posterior']:.3g}, 2 tanh(r/2) ‖V‖∞ = {bounds['sharp']:.3g}{measured}"
    )


def _answer(document: dict[str, Any]) -> Text:
    if document["conv_like"]:
        return Text.assemble(
            ("conv-like", "bold"),
            f": {document['terms_needed']} terms keep sampled rows within"
            f" {document['sampled_error']:.2g} ({document['tolerance']:g} was asked for; with confidence"
            f" {document['confidence']:g} at most {100 * document['exceeding']:.2g} % of the rows are beyond it)",
        )
    return Text.assemble(
        ("not conv-like", "bold"),
        f": with {document['terms_tried']} terms a row of attention is still off by"
        f" {document['sampled_error']:.3g} of the largest value ({document['tolerance']:g} was asked for)",
    )


def _curve(document: dict[str, Any]) -> Table:
    given = document["bounds"]["values_given"]
    field, what = ("output", "‖Y − Ỹ‖ / ‖Y‖") if given else ("mean_row", "mean row ‖a − ã‖₁")
    table = Table(title=f"error against k: {what}; of the logits in brackets", title_justify="left")
    table.add_column("k", justify="right")
    for kind in KINDS:
        on_grid = f" (starts every {document['grid']})" if kind == KINDS[2] and document["grid"] > 1 else ""
        table.add_column(kind + on_grid, justify="right")
    for k in sorted({point["k"] for point in document["curve"]}):
        points = {point["starts"]: point for point in document["curve"] if point["k"] == k}
        cells = (
            f"{points[kind][field]:.3g} ({points[kind]['logits']:.2g})" if kind in points else "" for kind in KINDS
        )
        table.add_row(str(k), *cells)
    return table


def _segments(document: dict[str, Any]) -> Table:
    table = Table(title=f"where conv structure holds: the best {document['terms']} segments", title_justify="left")
    for heading in ("columns", "unexplained", "rms residual", "largest residual", "holds"):
        table.add_column(heading, justify="right")
    for one in document["segments"]:
        table.add_row(
            f"{one['first_column']} … {one['first_column'] + one['columns'] - 1}",
            f"{100 * one['unexplained']:.3g} %",
            f"{one['rms_residual']:.3g}",
            f"{one['largest_residual']:.3g}",
            "yes" if one["holds"] else "no",
        )
    return table
