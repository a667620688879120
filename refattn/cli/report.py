"""``refattn report``: the ledger, in the terminal and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from refattn.cli._files import as_json, progress_bar, require_folders, write_if_asked
from refattn.report.ledger import Claim, Report, Row, run_claims
from refattn.report.processes import run_apart
from refattn.versions import show_versions


def report(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes: under a minute on two cores.")] = False,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="Only claims whose id contains TEXT.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML page.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of --json's file, and run nothing.")
    ] = False,
) -> None:
    """Run every claim and print what was measured.

    Exit status 0: every claim that must hold does. 1: one does not, or a check broke. 2: wrong usage.
    """
    from refattn.report import document, page
    from refattn.report.claims import ALL
    from refattn.report.terminal import print_report

    if schema:
        print(as_json(document.schema()), end="")
        raise typer.Exit
    claims = [claim for claim in ALL if only in claim.id]
    if not claims:
        raise typer.BadParameter(f"no claim's id contains {only!r}", param_hint="--only")
    require_folders(json_file, html_file)
    result = _run(claims, quick)
    print_report(result, Console())
    show_versions()
    write_if_asked(json_file, lambda: as_json(document.to_document(result)))
    write_if_asked(html_file, lambda: page.render(document.to_document(result)))
    raise typer.Exit(1 if result.failed else 0)


def _run(claims: list[Claim], quick: bool) -> Report:
    """Run the claims, with a progress bar on the standard error."""
    with progress_bar() as progress:
        task = progress.add_task("claims", total=len(claims))

        def seen(row: Row) -> None:
            progress.update(task, advance=1, description=row.id)

        return run_claims(claims, quick=quick, seen=seen, run=run_apart)
