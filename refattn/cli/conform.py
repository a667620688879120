"""``refattn conform``: somebody's implementation of attention against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refattn.cli._files import as_json, require_targets, shown_beside, write_all
from refattn.cli._streams import console

HELP = """Check an implementation of attention against the truth: where it is wrong, by how much, and perhaps why.

Exit status 0: it conforms. 1: a case failed, or none could be run. 2: wrong usage. 3: the output or a file could not
be written.
"""
EXAMPLES = """\
refattn conform mine:attention --op dense
refattn conform mine:attention --op dense --arrays torch --backward autograd --dtype bfloat16"""


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
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report as JSON; - is the standard output."),
    ] = None,
) -> None:
    """Run the command, as `HELP` says."""
    from refattn.testing.conformance import check_attention
    from refattn.testing.conformance.loading import load_function
    from refattn.testing.conformance.terminal import print_report

    require_targets({"--json": json_file})
    try:
        gradients = backward if backward in (None, "autograd") else load_function(str(backward))
        result = check_attention(
            load_function(function), operation, backward=gradients, adapter=layout, arrays=arrays, dtype=dtype,
            seeds=seed, only=only or (), skip=skip or (),
        )  # fmt: skip
    except (TypeError, ValueError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    with shown_beside(json_file):
        print_report(result, console())
    write_all({json_file: lambda: as_json(result.to_dict())})
    raise typer.Exit(0 if result.passed else 1)
