"""A conformance report in a terminal: a table of cases, then what failed and why (ours)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refattn.testing.conformance.report import FAIL, NOT_RUN, PASS, REFUSED, ConformanceReport

_STYLE = {PASS: "green", FAIL: "red", REFUSED: "yellow", NOT_RUN: "dim"}


def print_report(report: ConformanceReport, console: Console) -> None:
    """Print a row for every case, then the report's text."""
    table = Table(title=Text(f"{report.function} as {report.operation}, {report.dtype}"), title_justify="left")
    table.add_column("case")
    table.add_column("worst", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("plain", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for case in report.cases:
        worst = case.worst
        numbers = ("", "", "", "")
        if worst is not None:
            row = ", ".join(map(str, worst.row))
            numbers = (f"{worst.result} ({row})", f"{worst.error:.1e}", f"{worst.allowed:.1e}", f"{worst.plain:.1e}")
        cells = (Text(text) for text in (f"{case.kind}: {case.case}", *numbers))
        table.add_row(*cells, Text(case.verdict, _STYLE[case.verdict]))
    console.print(table)
    console.print(Text(str(report)), soft_wrap=True, highlight=False)
