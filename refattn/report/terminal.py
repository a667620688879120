"""The ledger in a terminal: one block a row, in the verdict's colour (ours)."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refattn.report.coverage import PAPERS, coverage
from refattn.report.figures import flat
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN, Claim, Report, Row
from refattn.report.page import number

_STYLE = {HOLDS: "green", HOLDS_IF: "yellow", FAILS: "red", NOT_RUN: "dim"}


def print_report(report: Report, console: Console) -> None:
    """Print every row, the counts, and what failed."""
    table = Table(show_lines=True, expand=True, title="Claims", title_justify="left")
    table.add_column("claim, source, how it was checked and on what", ratio=3, overflow="fold")
    table.add_column("measured\nbound", justify="right", no_wrap=True)
    table.add_column("verdict", ratio=1, min_width=13, overflow="fold")
    for row in report.rows:
        details = (f"{name}: {number(value) or value}" for name, value in flat(row.detail))
        under = (row.claim.source, row.claim.check, row.inputs, *details)
        table.add_row(
            Text.assemble((row.id, "bold"), f"\n{row.claim.claim}", *((f"\n{line}", "dim") for line in under if line)),
            Text("" if row.measured is None else f"{row.measured:.3g}\n{row.bound}"),
            _verdict(row),
        )
    console.print(table)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts().items())
    console.print(f"{len(report.rows)} claims: {counts}.", soft_wrap=True)
    for row in report.failed:
        console.print(Text(f"FAILED {row.id}: {row.reason or f'{row.measured:.3g}, bound {row.bound}'}", style="red"))
    _print_coverage(console)


def print_list(claims: Iterable[Claim], console: Console) -> None:
    """Print id and sentence of claims."""
    table = Table("id", "claim", "source", box=None)
    for claim in claims:
        table.add_row(Text(claim.id, style="bold", overflow="fold"), Text(claim.claim), Text(claim.source, style="dim"))
    console.print(table)


def _print_coverage(console: Console) -> None:
    """Print how many items of the papers have a row, and the others with the reason."""
    for paper in PAPERS:
        items = [item for item in coverage() if item.paper == paper]
        covered = sum(item.covered for item in items)
        console.print(
            f"arXiv {paper}: {covered} of {len(items)} items are covered by rows; not covered:", soft_wrap=True
        )
        for item in items:
            if not item.covered:
                console.print(Text(f"  {item.kind}, {item.name}: {item.remark}"), style="dim", soft_wrap=True)


def _verdict(row: Row) -> Text:
    """The verdict, with the condition or the reason under it."""
    under = row.condition or row.reason
    return Text.assemble((row.verdict, _STYLE[row.verdict]), *((f"\n{under}",) if under else ()))
