"""The ledger in a terminal: the verdict, a line a claim, and what has to be explained (ours)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refattn.report.citation import said
from refattn.report.compare import Change
from refattn.report.coverage import PAPERS, coverage
from refattn.report.document import to_document
from refattn.report.figures import flat
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN, Claim, Report, Row
from refattn.report.page import number
from refattn.report.verdict import sentence

_STYLE = {HOLDS: "green", HOLDS_IF: "yellow", FAILS: "red", NOT_RUN: "dim"}


def print_report(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print the verdict, a line a claim, what failed, does not hold or was not run, and the verdict again.

    With `verbose` every claim is explained, and every item of the papers without a row.
    """
    verdict = sentence(to_document(report))
    _print(console, verdict, "bold")
    console.print()
    cells = [(_mark(row), row.id, _measured(row), row.bound) for row in report.rows]
    first, second, third, fourth = (max(map(len, column), default=0) for column in zip(*cells, strict=True))
    for row, (mark, name, measured, bound) in zip(report.rows, cells, strict=True):
        line = Text.assemble((f"{mark:<{first}}", _STYLE[row.verdict]), f"  {name:<{second}}")
        line.append(f"  {measured:>{third}} {bound:<{fourth}}  ").append(row.claim.claim, "dim")
        console.print(line, no_wrap=True, overflow="ellipsis")
    for row in report.rows:
        if verbose or row.failed or row.verdict in (FAILS, NOT_RUN):
            _explain(row, console)
    console.print()
    for paper in PAPERS:
        _print_coverage(paper, console, verbose=verbose)
    _print(console, _evidence(report.environment), "dim")
    console.print()
    _print(console, verdict, "bold red" if report.failed else "bold")


def print_changes(changed: list[Change], console: Console) -> None:
    """Print what changed since another report."""
    console.print()
    _print(
        console,
        f"{len(changed) or 'no'} change{'' if len(changed) == 1 else 's'} since the report compared with",
        "bold",
    )
    for id, what, before, after in changed:
        told = {"new": f"new, {after}", "gone": f"gone, was {before}"}.get(what, f"{what}: {before} -> {after}")
        _print(console, f"  {id}: {told}")


def print_list(claims: Iterable[Claim], console: Console) -> None:
    """Print id and sentence of claims."""
    table = Table("id", "claim", "source", box=None)
    for claim in claims:
        table.add_row(Text(claim.id, style="bold", overflow="fold"), Text(claim.claim), Text(claim.source, style="dim"))
    console.print(table)


def _explain(row: Row, console: Console) -> None:
    """Print all about a row, under its verdict."""
    console.print()
    console.print(Text.assemble((_mark(row), _STYLE[row.verdict]), f"  {row.id}"), soft_wrap=True)
    about = [row.claim.claim, f"source: {row.claim.source}", f"check: {row.claim.check}"]
    about += [f"inputs: {row.inputs}"] if row.inputs else []
    about += [f"measured {_measured(row)}, bound {row.bound}"] if row.measured is not None else []
    about += [f"why: {row.reason}"] if row.reason else []
    about += [f"if {row.condition}"] if row.condition else []
    if row.verdict == FAILS and not row.failed:
        about.append("a statement that was put to the test: the report does not fail by it")
    if row.recorded:
        about.append(f"read off records of {row.recorded['begun'][:10]}, refattn {row.recorded['version']}")
    about += [f"{name}: {number(value) or value}" for name, value in flat(row.detail)]
    for line in about:
        _print(console, f"  {line}")


def _print_coverage(paper: str, console: Console, *, verbose: bool) -> None:
    """Print how many items of a paper have a row; and the others with the reason, if everything is wanted."""
    items = [item for item in coverage() if item.paper == paper]
    covered, rest = sum(item.covered for item in items), [item for item in items if not item.covered]
    ending = ("; not covered:" if verbose else "; --verbose names the others") if rest else ""
    _print(console, f"arXiv {paper}: {covered} of {len(items)} items are covered by rows{ending}")
    for item in rest if verbose else ():
        _print(console, f"  {item.kind}, {item.name}: {item.remark}", "dim")


def _evidence(environment: dict[str, Any]) -> str:
    """Return which sources ran, and on what, in a line."""
    machine, threads = environment["machine"], environment["threads"]
    kernels = dict.fromkeys(f"{one['internal_api']} {one.get('architecture', '')}".strip()
                            for one in environment["blas"] if one["internal_api"] != "openmp")  # fmt: skip
    on = f"{machine['cpu']}, {machine['cores']} cores, {threads} threads, {', '.join(kernels)}"
    return f"refattn {environment['refattn']}, {said(environment['sources'])}; Python {environment['python']}; {on}"


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style), soft_wrap=True)


def _measured(row: Row) -> str:
    return "" if row.measured is None else f"{row.measured:.3g}"


def _mark(row: Row) -> str:
    return f"FAILED: {row.verdict}" if row.failed else row.verdict
