"""The command line: ``refattn report`` and ``refattn versions``.

Needs the extra ``report``; the library itself does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from refattn.versions import environment, show_versions

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError as error:  # the console script exists without the extra
    raise SystemExit(f"refattn: the command line needs {error.name}: python -m pip install 'refattn[report]'") from None

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Verified reference attention: evidence on request.")


@app.command()
def report(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes: under a minute on two cores.")] = False,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="Only claims whose id contains TEXT.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML page.")
    ] = None,
) -> None:
    """Run every claim and print what was measured.

    Exit status 0: every claim that must hold does. 1: one does not, or a check broke. 2: wrong usage.
    """
    from refattn.report import page
    from refattn.report.claims import ALL
    from refattn.report.ledger import Report, run_each
    from refattn.report.terminal import print_report

    claims = [claim for claim in ALL if only in claim.id]
    if not claims:
        raise typer.BadParameter(f"no claim's id contains {only!r}", param_hint="--only")
    for file in (json_file, html_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(f"the folder of {file} does not exist")

    progress_console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows = []
    with Progress(*columns, console=progress_console, transient=True) as progress:
        task = progress.add_task(claims[0].id, total=len(claims))
        for place, row in enumerate(run_each(claims, quick=quick), start=1):
            rows.append(row)
            progress.update(task, completed=place, description=claims[min(place, len(claims) - 1)].id)
    result = Report(tuple(rows), quick, environment())

    print_report(result, Console())
    show_versions()
    _write(json_file, lambda: json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _write(html_file, lambda: page.render(result))
    raise typer.Exit(1 if result.failed else 0)


@app.command()
def versions(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Print the versions and settings that results depend on."""
    show_versions(json=as_json)


def _write(file: Path | None, text: Callable[[], str]) -> None:
    """Write a file whole or not at all; a file that cannot be written is one clear line and status 1."""
    if file is None:
        return
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text(), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        print(f"refattn: {file} could not be written: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1) from None


def main() -> None:
    """Run the command line; the console script's entry point."""
    app(prog_name="refattn")
