"""``refattn report``: the ledger, in the terminal and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from refattn.cli import _paper
from refattn.cli._commands import command_line
from refattn.cli._files import announce, as_json, progress_bar, require_targets, shown_beside, write_each
from refattn.cli._streams import OUTPUT_ERROR, console
from refattn.report.coverage import paper_of
from refattn.report.ledger import Claim, Report, Row, run_claims
from refattn.report.processes import run_apart
from refattn.report.selection import Choice

HELP = """Run every claim and print what was measured: the verdict, a line a claim, and what has to be explained.

Exit status 0: every claim that must hold does. 1: one does not, or a check broke. 2: wrong usage. 3: the output or a
file could not be written. 4: --compare found a change, and nothing else is wrong.
"""
CHANGED = 4
EXAMPLES = """\
refattn report --quick
refattn report --quick --json report.json --html report.html
refattn report --only sparsek.
refattn report --from report.json --latex claims.tex --template study
refattn report --quick --compare report.json
refattn report --list"""


def report(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes: about a minute on two cores.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="TEXT", help="Only claims whose id contains TEXT; may be repeated."),
    ] = None,
    paper: Annotated[
        list[str] | None,
        typer.Option("--paper", metavar="NAME", help="Only claims of a paper: conv-basis, sparsek, a number, or ours."),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Run nothing: write the files from a report that --json wrote."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report as JSON; - is the standard output."),
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one HTML page; - likewise.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write a Markdown table; - likewise.")
    ] = None,
    latex_file: Annotated[
        Path | None, typer.Option("--latex", metavar="FILE", help="Also write a LaTeX table; - likewise.")
    ] = None,
    verdict: Annotated[
        list[str] | None,
        typer.Option("--verdict", metavar="NAME", help="In the two tables, only rows of a verdict; may be repeated."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Also write the figures as PDF and CSV.")
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="DIR", help="Also write a reproducibility report to go on with, in LaTeX."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="Also say what changed since a report that --json wrote."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Explain every claim.")] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="List the claims, or those that are chosen, and run nothing.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of --json's file, and run nothing.")
    ] = False,
) -> None:
    """Run the command, as `HELP` says."""
    from refattn.report import document, page, tables
    from refattn.report.claims import ALL
    from refattn.report.compare import changes
    from refattn.report.study import study
    from refattn.report.terminal import print_changes, print_list, print_report

    files = {"--json": json_file, "--html": html_file, "--markdown": markdown_file, "--latex": latex_file}
    targets = [*files.values(), figures, template]
    alone = (quick, only, paper, verdict, from_file, compare, verbose, *targets)
    if schema:
        if any((*alone, show_list)):
            raise typer.BadParameter("came with another option, which it would ignore", param_hint="--schema")
        print(as_json(document.schema()), end="")
        raise typer.Exit
    if show_list and any((quick, verdict, from_file, compare, verbose, *targets)):
        raise typer.BadParameter("came with another option, which it would ignore", param_hint="--list")
    for option, given in (("--quick", quick), ("--verbose", verbose)):
        if from_file and given:
            raise typer.BadParameter("came with --from, which runs nothing", param_hint=option)
    if from_file and json_file:
        raise typer.BadParameter("came with --from, which reads what it would write", param_hint="--json")
    if from_file and not any((*targets, compare)):
        raise typer.BadParameter("came without a file to write", param_hint="--from")
    stored = _paper.read_report(from_file, "--from") if from_file else None
    before = _paper.read_report(compare, "--compare") if compare else None
    known = [(r["id"], r["paper"]) for r in stored["rows"]] if stored else [(c.id, paper_of(c.source)) for c in ALL]
    asked = (only or [], paper or [], verdict or [])
    table = bool(markdown_file or latex_file)
    choice = _paper.choose(dict(known), *asked, tables=table, stored=stored is not None)
    claims = [claim for claim in ALL if choice.wants(claim.id, paper_of(claim.source))]
    if show_list:
        print_list(claims, console())
        raise typer.Exit
    if before and before["quick"] != (stored["quick"] if stored else quick):
        came, wanted = ("a quick" if before["quick"] else "a full"), ("a full" if before["quick"] else "a quick")
        raise typer.BadParameter(f"{came} report came, {wanted} one was wanted", param_hint="--compare")
    require_targets(files, read=from_file)
    _paper.require_folders(figures, template)
    _paper.require_modules({**files, _paper.FIGURES: figures, _paper.TEMPLATE: template})
    result = None if stored else _run(claims, quick)
    found = document.to_document(result) if result else stored or {}
    contents = {
        json_file: lambda: as_json(found),
        html_file: lambda: page.render(found),
        markdown_file: lambda: tables.markdown(found, choice),
        latex_file: lambda: tables.latex(found, choice),
    }
    written = write_each(contents)
    for folder, files_of in ((figures, lambda: _paper.figure_files(found)), (template, lambda: study(found))):
        if folder is not None:
            written[folder] = _paper.write_folder(folder, files_of)
    changed = changes(_chosen(before, choice), _chosen(found, choice)) if before else []
    with shown_beside(*files.values()):
        if result:
            print_report(result, console(), verbose=verbose)
        if before:
            print_changes(changed, console())
        announce(written)
    raise typer.Exit(OUTPUT_ERROR if not all(written.values()) else 1 if found["failed"] else CHANGED if changed else 0)


def _chosen(report: dict[str, Any], choice: Choice) -> dict[str, Any]:
    return {**report, "rows": [row for row in report["rows"] if choice.wants(row["id"], row["paper"])]}


def _run(claims: list[Claim], quick: bool) -> Report:
    """Run the claims, with a progress bar on the standard error."""
    with progress_bar() as progress:
        task = progress.add_task("claims", total=len(claims))

        def seen(row: Row) -> None:
            progress.update(task, advance=1, description=row.id)

        return run_claims(claims, quick=quick, seen=seen, run=run_apart, command=command_line())
