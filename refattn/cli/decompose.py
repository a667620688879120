"""``refattn decompose``: what conv structure somebody's own arrays have."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from refattn._files import write_whole
from refattn._validation import PromotionWarning
from refattn.cli._files import progress_bar, require_folders, write_if_asked


def decompose(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".npz with q, k (and v), or h; .npy with h.")],
    matrix: Annotated[
        str, typer.Option("--matrix", help="What h is: logits, or attention (weights; their logarithms are taken).")
    ] = "logits",
    terms: Annotated[int, typer.Option("--terms", min=1, help="Terms of the basis whose segments are shown.")] = 16,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Error of a row of attention up to which structure is said to hold.")
    ] = 0.1,
    head: Annotated[
        list[str] | None, typer.Option("--head", metavar="I,J", help="Only this head, by its leading indices.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, metavar="N", help="Only the first N positions.")
    ] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Factor of the logits q·k; 1/√d by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampled rows.")] = 0,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Also draw it; a file for every head.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write it as JSON.")] = None,
) -> None:
    """Decompose the logits of your own heads into a conv basis: terms, errors against k, segments, bounds, a picture.

    Arrays are (…, n, d), or (…, n, n) for h, of which the part on and below the diagonal is read. Exit status 0: done.
    1: a file could not be written. 2: wrong usage, or a file that cannot be used.
    """
    require_folders(png, json_file)
    if matrix not in ("logits", "attention"):
        raise typer.BadParameter(f"{matrix!r} came, logits or attention was wanted", param_hint="--matrix")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromotionWarning)
            documents = _decompose(file, matrix, terms, tolerance, head, length, scale, seed, png)
    except (TypeError, ValueError, OSError, MemoryError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        place = "" if str(file) in told else f"{file}: "
        print(f"refattn: {place}{told}", file=sys.stderr)
        raise typer.Exit(2) from None
    from refattn.decomposition import SCHEMA

    result = {"schema": SCHEMA, "file": file.name, "matrix": matrix, "heads": documents}
    write_if_asked(json_file, lambda: json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _decompose(
    file: Path,
    matrix: str,
    terms: int,
    tolerance: float,
    only: list[str] | None,
    length: int | None,
    scale: float | None,
    seed: int,
    png: Path | None,
) -> list[dict[str, Any]]:
    """Read, measure, print and draw every head that is asked for."""
    from refattn.decomposition import measure_head, read_heads
    from refattn.decomposition.picture import picture
    from refattn.decomposition.terminal import print_head

    count, heads = read_heads(file, matrix=matrix, length=length, scale=scale)
    documents = []
    with progress_bar() as progress:
        task = progress.add_task("heads", total=count)
        for one in heads:
            name = ",".join(map(str, one.index))
            if not only or name in only:
                report = measure_head(one, terms=terms, tolerance=tolerance, seed=seed)
                print_head(report.document, Console())
                documents.append(report.document)
                if png is not None:
                    title = f"{file.name}{f', head {name}' if name else ''}: {matrix if one.v is None else 'q, k, v'}"
                    target = (
                        png
                        if count == 1 or len(only or ()) == 1
                        else png.with_stem(f"{png.stem}-{name.replace(',', '-')}")
                    )
                    write_whole(target, picture(report, title))
            progress.advance(task)
    if not documents:
        raise ValueError(f"head: {', '.join(only or ())} came, the indices of one of {count} heads were wanted")
    return documents
