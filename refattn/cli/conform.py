"""``refattn conform``: somebody's implementation of attention against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refattn.cli._files import as_json, require_targets, shown_beside, write_all
from refattn.cli._streams import console

HELP = """Check an implementation of attention against the truth: where it is wrong, by how much, and perhaps why.

Exit status 0: it conforms. 1: a case failed, or none could be run and judged. 2: wrong usage. 3: the output or a file
could not be written.
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
    arrays: Annotated[str, typer.Option("--arrays", help="Whose arrays it takes: numpy, torch, jax, cupy.")] = "numpy",
    device: Annotated[
        str | None, typer.Option("--device", help="Where they are: cuda, cuda:1, mps; gpu for JAX.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, float64, float16 or bfloat16.")] = "float32",
    precision: Annotated[
        str | None, typer.Option("--precision", help="What it is judged by, if not the dtype; also float8_e4m3, ….")
    ] = None,
    accumulate: Annotated[
        str, typer.Option("--accumulate", help="Where it holds sums of half precision: float32, tiles or dtype.")
    ] = "float32",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the inputs.")] = 0,
    profile: Annotated[
        str, typer.Option("--profile", help="quick (seconds), standard (a minute) or long.")
    ] = "standard",
    takes: Annotated[
        str, typer.Option("--takes", metavar="SIZES", help="What it takes: 'n%128, d=64|128, batch=1', or a TOML file.")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="A call that raises is a failure, not a refusal.")] = False,
    empty_rows: Annotated[
        str, typer.Option("--empty-rows", help="What a row gives that sees no key: zeros, mean, nan; or skip.")
    ] = "zeros",
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="TEXT", help="Only cases with the tag or the words TEXT.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="TEXT", help="No cases with the tag or the words TEXT.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="TAG", help="It lacks this: grouped, d_v, mask, ….")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", metavar="OURS=THEIRS", help="Its own name of an option.")
    ] = None,
    returns: Annotated[str, typer.Option("--returns", help="'out', or 'out, lse'.")] = "out",
    claims: Annotated[
        list[str] | None,
        typer.Option("--claim", help="Bit for bit: deterministic, batch-invariant, prefix-invariant; or nan-safe."),
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run it in a child process: an abort is a failure.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="A call that takes longer is a failure.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report as JSON; - is the standard output."),
    ] = None,
    junit_file: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Also write it as JUnit XML, for a build server."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every case, and of those that failed both rows.")
    ] = False,
) -> None:
    """Run the command, as `HELP` says."""
    from refattn.testing.conformance import as_junit, check_attention
    from refattn.testing.conformance.loading import load_function
    from refattn.testing.conformance.terminal import print_report

    require_targets({"--json": json_file, "--junit": junit_file})
    try:
        gradients = backward if backward in (None, "autograd") else load_function(str(backward))
        result = check_attention(
            load_function(function), operation, backward=gradients, adapter=layout, arrays=arrays, device=device,
            dtype=dtype, precision=precision, accumulate=accumulate,
            seeds=seed, profile=profile, takes=takes, strict=strict, empty_rows=empty_rows, only=only or (),
            skip=skip or (), without=without or (), names=_names(names or []), returns=returns, claims=claims or (),
            isolate=isolate, timeout=timeout,
        )  # fmt: skip
    except (TypeError, ValueError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    with shown_beside(json_file, junit_file):
        if verbose:
            print_report(result, console())
        else:
            print(result.short())
    write_all({json_file: lambda: as_json(result.to_dict()), junit_file: lambda: as_junit(result)})
    raise typer.Exit(0 if result.passed else 1)


def _names(given: list[str]) -> dict[str, str]:
    """Return ``ours=theirs`` as a mapping."""
    for text in given:
        if not all(text.partition("=")):
            raise ValueError(f"--name: {text!r} came, something like mask=bias was wanted")
    return {ours: theirs for ours, _, theirs in (text.partition("=") for text in given)}
