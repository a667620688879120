"""The command line, a module for each command or two: evidence on request, and what keeps it quick.

Needs the extra ``report``; the library itself does not.
"""

from __future__ import annotations

from typing import Annotated

from refattn._needs import missing

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:  # the console script exists without the extra
    raise SystemExit(f"refattn: {missing('the command line', str(error.name))}") from None

from refattn._version import __version__
from refattn.cli import cache, conform, decompose, experiment, report, train, vectors, versions
from refattn.cli._commands import Command, Group

app = typer.Typer(no_args_is_help=True, cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
app.command(cls=Command, help=report.HELP, epilog=report.EXAMPLES)(report.report)
app.command(cls=Command, help=experiment.HELP, epilog=experiment.EXAMPLES)(experiment.experiment)
app.command(cls=Command, help=train.HELP, epilog=train.EXAMPLES)(train.train)
app.command(cls=Command, help=decompose.HELP, epilog=decompose.EXAMPLES)(decompose.decompose)
app.command(cls=Command, help=conform.HELP, epilog=conform.EXAMPLES)(conform.conform)
app.add_typer(vectors.app, name="vectors")
app.command(cls=Command, help=versions.HELP, epilog=versions.EXAMPLES)(versions.versions)
app.add_typer(cache.app, name="cache")
app.command(cls=Command, help=cache.WARMUP_HELP, epilog="refattn warmup")(cache.warmup)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"refattn {__version__}")
        raise typer.Exit


@app.callback()
def refattn(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Verified reference attention: evidence on request."""


def main() -> None:
    """Run the command line; the console script's entry point."""
    app(prog_name="refattn")
