"""``refattn decompose``: what conv structure somebody's own arrays have."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from refattn._needs import missing
from refattn._validation import PromotionWarning
from refattn.cli._files import STANDARD_OUTPUT, progress_bar, require_targets, shown_beside, write_all, write_one
from refattn.cli._streams import OUTPUT_ERROR, console

HELP = """Decompose the logits of your own heads into a conv basis: terms, errors against k, segments, bounds, picture.

Arrays are (…, n, d), or (…, n, n) for h, of which the part on and below the diagonal is read. Exit status 0: done. 2:
wrong usage, or a file that cannot be used. 3: the output or a file could not be written.
"""
EXAMPLES = """\
refattn decompose heads.npz
refattn decompose logits.npy --json found.json --png found.png"""


def decompose(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".npz with q, k (and v), or h; .npy with h.")],
    matrix: Annotated[
        str | None,
        typer.Option(
            "--matrix",
            help="What h is: logits, the default, or attention (weights; their logarithms are taken).",
        ),
    ] = None,
    stored: Annotated[
        str | None,
        typer.Option(
            "--stored",
            metavar="DTYPE",
            help="What the numbers were rounded to before the file had them: float16, bfloat16, float32, float64. By"
            " default the file's own dtype.",
        ),
    ] = None,
    terms: Annotated[
        int, typer.Option("--terms", min=1, help="Terms of the basis whose segments are shown; at most n are.")
    ] = 16,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Error of a row of attention up to which structure is said to hold.")
    ] = 0.1,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="I,J", help="Only this head, by its leading indices; may be given again."),
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, metavar="N", help="Only the first N positions.")
    ] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Factor of the logits q·k; 1/√d by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampled rows.")] = 0,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Also draw it; a file for every head.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write it as JSON; - is the standard output.")
    ] = None,
) -> None:
    """Run the command, as `HELP` says."""
    from refattn.decomposition import SCHEMA, measure_head, read_heads
    from refattn.decomposition.terminal import print_head

    if png == STANDARD_OUTPUT:
        raise typer.BadParameter("a picture is not written to the standard output", param_hint="--png")
    require_targets({"--json": json_file, "--png": png}, read=file)
    documents, drawn = [], True
    with progress_bar() as progress, shown_beside(json_file):
        with _refused(file):
            picture = None if png is None else _picture()
            _say_what_is_not_read(file)
            count, heads = read_heads(file, matrix=matrix, stored=stored, length=length, scale=scale, only=head)
        task = progress.add_task("heads", total=count)
        for one in _measured(file, heads):
            with _refused(file):
                report = measure_head(one, terms=terms, tolerance=tolerance, seed=seed)
            print_head(report.document, console())
            documents.append(report.document)
            if png is not None and picture is not None:
                name = ",".join(map(str, one.index))
                what = "q, k, v" if one.v is not None else matrix or "logits"
                title = f"{file.name}{f', head {name}' if name else ''}: {what}"
                target = png if count == 1 else png.with_stem(f"{png.stem}-{name.replace(',', '-')}")
                drawn &= write_one(target, picture(report, title))
            progress.advance(task)
    result = {"schema": SCHEMA, "file": file.name, "matrix": matrix or "logits", "heads": documents}
    write_all({json_file: lambda: json.dumps(result, indent=2, ensure_ascii=False) + "\n"})
    if not drawn:
        raise typer.Exit(OUTPUT_ERROR)


@contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Tell in one line, with status 2, why a file cannot be used as it was asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromotionWarning)
            yield
    except (TypeError, ValueError, OSError, MemoryError, ImportError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        place = "" if str(file) in told else f"{file}: "
        print(f"refattn: {place}{told}", file=sys.stderr)
        raise typer.Exit(2) from None


def _measured(file: Path, heads: Iterator[Any]) -> Iterator[Any]:
    """Yield the heads; one that cannot be used ends the command as `_refused` says."""
    while True:
        with _refused(file):
            one = next(heads, None)
        if one is None:
            return
        yield one


def _picture() -> Any:
    """Return the function that draws, or raise naming what it needs."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise missing("--png", str(error.name)) from None
    from refattn.decomposition.picture import picture

    return picture


def _say_what_is_not_read(file: Path) -> None:
    """Name the arrays of an archive that have none of the names that are read."""
    from refattn.decomposition.reading import other_arrays

    others = other_arrays(file)
    if others:
        print(f"refattn: {file}: not read: {', '.join(others)}", file=sys.stderr)
