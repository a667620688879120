"""``refattn experiment``: run one of the experiments, or go on with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TextColumn, TimeRemainingColumn
from rich.table import Table

from refattn.cli._files import progress_bar
from refattn.cli._streams import INTERRUPTED, console
from refattn.experiments.experiment import Experiment
from refattn.experiments.workers import ItemFailedError, Workers, dask_workers, local_workers

HELP = """Run an experiment: its records are in DIR/NAME.jsonl, and the same command goes on where it was stopped.

DIR is 'records' by default, 'records/quick' with --quick. Exit status 0: every item is finished. 1: an item failed, or
the file cannot be used. 2: wrong usage, or a library is missing. 3: the output could not be written. 130: stopped by
Ctrl-C.
"""
EXAMPLES = """\
refattn experiment --list
refattn experiment error-against-k --quick
refattn experiment time-against-n --sizes 512,2048 --workers 2"""


def experiment(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which one; without it, see --list.")] = "",
    show_list: Annotated[bool, typer.Option("--list", help="List the experiments and leave.")] = False,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="N,N,…", help="Instead of the experiment's own, separated by commas.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the records; made if missing.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Local processes; 0: in this one.")] = 0,
    scheduler: Annotated[
        str, typer.Option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster that is to compute the items.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A trial: small sizes.")] = False,
) -> None:
    """Run the command, as `HELP` says."""
    from refattn.experiments import catalogue

    if show_list:
        if name or sizes or out or workers or scheduler or quick:
            raise typer.BadParameter("came with a name or another option, which it would ignore", param_hint="--list")
        _print_list()
        return
    if workers and scheduler:
        raise typer.BadParameter("one of --workers and --scheduler was wanted", param_hint="--scheduler")
    if quick and sizes:
        raise typer.BadParameter("one of --quick and --sizes was wanted", param_hint="--sizes")
    try:
        chosen = catalogue.load(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    folder = out or Path("records/quick" if quick else "records")
    try:
        pool = dask_workers(scheduler) if scheduler else local_workers(workers) if workers else None
    except ModuleNotFoundError as error:
        raise _failure(str(error), 2) from None
    _run(chosen, folder, chosen.quick_sizes if quick else _as_sizes(sizes, chosen.sizes), pool)


def _run(chosen: Experiment, folder: Path, sizes: tuple[int, ...], pool: Workers | None) -> None:
    """Run with a progress bar, and say in one line how it ended."""
    from refattn.experiments.runner import run_experiment

    try:
        with progress_bar(TextColumn("left"), TimeRemainingColumn()) as progress:
            task = progress.add_task(chosen.name, total=None)
            path = run_experiment(
                chosen,
                folder,
                sizes=sizes,
                workers=pool,
                on_item=lambda done, total: progress.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        print("refattn: stopped; finished items are kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BlockingIOError:
        raise _failure(f"another process is writing {folder / chosen.name}.jsonl") from None
    except ModuleNotFoundError as error:
        raise _failure(str(error), 2) from None
    except (ItemFailedError, OSError, ValueError, TypeError) as error:
        raise _failure(str(error)) from None
    print(path)


def _as_sizes(text: str, default: tuple[int, ...]) -> tuple[int, ...]:
    if not text:
        return default
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise typer.BadParameter(
            f"{text!r} came, distinct positive whole numbers such as 512,2048 were wanted", param_hint="--sizes"
        )
    return sizes


def _failure(message: str, status: int = 1) -> typer.Exit:
    print(f"refattn: {message}", file=sys.stderr)
    return typer.Exit(status)


def _print_list() -> None:
    from refattn.experiments import catalogue

    table = Table("name", "question", "sizes")
    for name in catalogue.MODULES:
        chosen = catalogue.load(name)
        table.add_row(name, chosen.question, ", ".join(map(str, chosen.sizes)))
    console().print(table)
