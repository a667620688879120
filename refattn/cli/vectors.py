"""``refattn vectors``: the reference vectors, computed anew or verified."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from refattn._needs import missing, not_there
from refattn.cli._commands import Command, Group

app = typer.Typer(no_args_is_help=True, cls=Group, help="Reference vectors: compute them anew, or verify them.")


@app.command(
    cls=Command,
    help="Compute the reference vectors to 50 digits and write them, bit for bit the shipped ones. Needs mpmath.",
    epilog="refattn vectors generate --out vectors",
)
def generate(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to; made if missing.")],
) -> None:
    """Compute the reference vectors anew."""
    if absent := not_there(["mpmath"]):
        print(f"refattn: {missing('refattn vectors generate', *absent)}", file=sys.stderr)
        raise typer.Exit(2)
    from refattn.laboratory.vectors import generate as generate_vectors
    from refattn.testing.vectors import load_manifest

    try:
        manifest = generate_vectors(out)
    except OSError as error:
        print(f"refattn: the vectors could not be made: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    shipped = load_manifest()
    same = sum(manifest["files"][name]["sha256"] == one["sha256"] for name, one in shipped["files"].items())
    print(f"{len(manifest['files'])} files in {out}, {same} of {len(shipped['files'])} bit for bit the shipped ones")
    raise typer.Exit(0 if same == len(manifest["files"]) == len(shipped["files"]) else 1)


@app.command(
    cls=Command,
    help="Compare every stored result with this package's own. Exit status 1: a file or a result is not right.",
    epilog="refattn vectors verify",
)
def verify(
    folder: Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="By default the shipped ones.")] = None,
) -> None:
    """Verify the reference vectors."""
    from refattn.testing.vectors.verify import verify_vectors

    try:
        checks = verify_vectors(folder)
    except (ValueError, OSError) as error:
        print(f"refattn: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.error:.1e}, bound {check.bound:.0e}")
    raise typer.Exit(0 if checks and all(check.passed for check in checks) else 1)
