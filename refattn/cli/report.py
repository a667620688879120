"""``refattn report``: the ledger, in the terminal and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refattn.cli._files import as_json, progress_bar, require_targets, shown_beside, write_all
from refattn.cli._streams import console
from refattn.report.ledger import Claim, Report, Row, run_claims
from refattn.report.processes import run_apart
from refattn.versions import show_versions

HELP = """Run every claim and print what was measured.

Exit status 0: every claim that must hold does. 1: one does not, or a check broke. 2: wrong usage. 3: the output or a
file could not be written.
"""
EXAMPLES = """\
refattn report --quick
refattn report --quick --json report.json --html report.html
refattn report --only sparsek.
refattn report --list"""


def report(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes: about a minute on two cores.")] = False,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="Only claims whose id contains TEXT.")] = "",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report as JSON; - is the standard output."),
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML page; - likewise.")
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List the claims, or those that --only chooses, and run nothing.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of --json's file, and run nothing.")
    ] = False,
) -> None:
    """Run the command, as `HELP` says."""
    from refattn.report import document, page
    from refattn.report.claims import ALL
    from refattn.report.terminal import print_list, print_report

    if schema:
        if quick or only or json_file or html_file or show_list:
            raise typer.BadParameter("came with another option, which it would ignore", param_hint="--schema")
        print(as_json(document.schema()), end="")
        raise typer.Exit
    claims = [claim for claim in ALL if only in claim.id]
    if not claims:
        raise typer.BadParameter(f"no claim's id contains {only!r}", param_hint="--only")
    if show_list:
        if quick or json_file or html_file:
            raise typer.BadParameter("came with another option, which it would ignore", param_hint="--list")
        print_list(claims, console())
        raise typer.Exit
    require_targets({"--json": json_file, "--html": html_file})
    result = _run(claims, quick)
    with shown_beside(json_file, html_file):
        print_report(result, console())
        show_versions()
    write_all(
        {
            json_file: lambda: as_json(document.to_document(result)),
            html_file: lambda: page.render(document.to_document(result)),
        }
    )
    raise typer.Exit(1 if result.failed else 0)


def _run(claims: list[Claim], quick: bool) -> Report:
    """Run the claims, with a progress bar on the standard error."""
    with progress_bar() as progress:
        task = progress.add_task("claims", total=len(claims))

        def seen(row: Row) -> None:
            progress.update(task, advance=1, description=row.id)

        return run_claims(claims, quick=quick, seen=seen, run=run_apart)
