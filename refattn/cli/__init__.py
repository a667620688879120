"""The command line, a module for each command or two: evidence on request, and what keeps it quick.

Needs the extra ``report``; the library itself does not.
"""

from __future__ import annotations

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:  # the console script exists without the extra
    raise SystemExit(f"refattn: the command line needs {error.name}: python -m pip install 'refattn[report]'") from None

from refattn.cli import cache, conform, decompose, experiment, report, train, vectors, versions
from refattn.cli._commands import Command, Group

app = typer.Typer(
    no_args_is_help=True, add_completion=False, cls=Group, help="Verified reference attention: evidence on request."
)
app.command(cls=Command, help=report.HELP)(report.report)
app.command(cls=Command, help=experiment.HELP)(experiment.experiment)
app.command(cls=Command, help=train.HELP)(train.train)
app.command(cls=Command, help=decompose.HELP)(decompose.decompose)
app.command(cls=Command, help=conform.HELP)(conform.conform)
app.add_typer(vectors.app, name="vectors")
app.command(cls=Command, help=versions.HELP)(versions.versions)
app.add_typer(cache.app, name="cache")
app.command(cls=Command, help=cache.WARMUP_HELP)(cache.warmup)


def main() -> None:
    """Run the command line; the console script's entry point."""
    app(prog_name="refattn")
