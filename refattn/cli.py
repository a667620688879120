"""The command line: ``refattn report``, ``conform``, ``vectors`` and ``versions``.

Needs the extra ``report``; the library itself does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from refattn._files import write_whole
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
def conform(
    function: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="The implementation to check.")],
    operation: Annotated[str, typer.Option("--op", help="dense, conv, sparsek, sparsek-operator, sparsek-thresholds.")],
    backward: Annotated[
        str | None, typer.Option("--backward", metavar="MODULE:FUNCTION", help="Its gradients; or 'autograd'.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="Axes of its arrays, as BHND, BNHD or ND.")] = "BHND",
    arrays: Annotated[str, typer.Option("--arrays", help="Whose arrays it takes: numpy, torch, jax.")] = "numpy",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, float64, float16 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the inputs.")] = 0,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="TEXT", help="Only cases with TEXT.")] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", metavar="TEXT", help="No cases with TEXT.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON.")
    ] = None,
) -> None:
    """Check an implementation of attention against the truth: where it is wrong, by how much, and perhaps why.

    Exit status 0: it conforms. 1: a case failed, or none could be run. 2: wrong usage.
    """
    from refattn.testing.conformance import check_attention
    from refattn.testing.conformance.loading import load_function
    from refattn.testing.conformance.terminal import print_report

    try:
        gradients = backward if backward in (None, "autograd") else load_function(str(backward))
        result = check_attention(
            load_function(function), operation, backward=gradients, adapter=layout, arrays=arrays, dtype=dtype,
            seeds=seed, only=only or (), skip=skip or (),
        )  # fmt: skip
    except (TypeError, ValueError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    print_report(result, Console())
    _write(json_file, lambda: json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    raise typer.Exit(0 if result.passed else 1)


vectors_app = typer.Typer(no_args_is_help=True, help="Reference vectors: compute them anew, or verify them.")
app.add_typer(vectors_app, name="vectors")


@vectors_app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to; made if missing.")],
) -> None:
    """Compute the reference vectors to 50 digits and write them, bit for bit the shipped ones. Needs mpmath."""
    from refattn.testing.vectors import load_manifest
    from refattn.testing.vectors.generate import generate as generate_vectors

    try:
        manifest = generate_vectors(out)
    except (ImportError, OSError) as error:
        print(f"refattn: the vectors could not be made: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    shipped = load_manifest()
    same = sum(manifest["files"][name]["sha256"] == one["sha256"] for name, one in shipped["files"].items())
    print(f"{len(manifest['files'])} files in {out}, {same} of {len(shipped['files'])} bit for bit the shipped ones")
    raise typer.Exit(0 if same == len(manifest["files"]) == len(shipped["files"]) else 1)


@vectors_app.command()
def verify(
    folder: Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="By default the shipped ones.")] = None,
) -> None:
    """Compare every stored result with this package's own. Exit status 1: a file or a result is not right."""
    from refattn.testing.vectors.verify import verify_vectors

    try:
        checks = verify_vectors(folder)
    except (ValueError, OSError) as error:
        print(f"refattn: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.error:.1e}, bound {check.bound:.0e}")
    raise typer.Exit(0 if checks and all(check.passed for check in checks) else 1)


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
    try:
        write_whole(file, text())
    except OSError as error:
        print(f"refattn: {file} could not be written: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1) from None


def main() -> None:
    """Run the command line; the console script's entry point."""
    app(prog_name="refattn")
