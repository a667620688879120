"""``refattn train``: train a decoder as a file says, or several, or go on with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TextColumn, TimeRemainingColumn

from refattn.cli._files import progress_bar
from refattn.cli._streams import INTERRUPTED
from refattn.experiments.workers import ItemFailedError, Workers, dask_workers, local_workers

if TYPE_CHECKING:
    from refattn.training.config import TrainingConfig

HELP = """Train: the checkpoint and the log are in DIR/NAME, and the same command goes on where it was stopped.

Ctrl-C finishes the step and saves. Several files, or --workers or --scheduler, are run as an experiment, whose records
are DIR/trainings.jsonl. Exit status 0: every training is finished. 1: one failed, or a file cannot be used. 2: wrong
usage, or a library is missing. 3: the output could not be written. 130: stopped by Ctrl-C.
"""
EXAMPLES = """\
refattn train mine.toml
refattn train one.toml other.toml --workers 2 --out trainings"""


def train(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG.toml …", help="One file, or several.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Each training is in DIR/NAME, NAME being its file's.")
    ] = Path("trainings"),
    workers: Annotated[int, typer.Option("--workers", min=0, help="Local processes; 0: in this one.")] = 0,
    scheduler: Annotated[
        str, typer.Option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster that sees the same folders.")
    ] = "",
) -> None:
    """Run the command, as `HELP` says."""
    if workers and scheduler:
        raise typer.BadParameter("one of --workers and --scheduler was wanted", param_hint="--scheduler")
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"names {', '.join(names)} came, distinct ones were wanted", param_hint="CONFIG.toml")
    try:
        from refattn.training.config import read_config

        read = {path.stem: read_config(path) for path in configs}
        pool = dask_workers(scheduler) if scheduler else local_workers(workers) if workers else None
        if len(configs) == 1 and pool is None:
            interrupted = _run_one(names[0], read[names[0]], out / names[0], configs[0].parent)
        else:
            interrupted = _run_list(read, out, {path.stem: path.parent for path in configs}, pool)
    except KeyboardInterrupt:
        interrupted = True
    except BlockingIOError:
        raise _failure(f"another process is training in {out}") from None
    except ModuleNotFoundError as error:
        raise _failure(str(error), 2) from None
    except (ItemFailedError, ArithmeticError, OSError, ValueError, TypeError) as error:
        raise _failure(str(error)) from None
    if interrupted:
        print("refattn: stopped; what was trained is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _run_one(name: str, config: TrainingConfig, folder: Path, texts: Path) -> bool:
    """Train with a line of progress; return whether Ctrl-C ended it."""
    from refattn.training.assembly import train as run

    columns = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[told]}"))
    with progress_bar(*columns) as progress:
        task = progress.add_task(name, total=config.steps, told="")

        def seen(line: dict[str, Any]) -> None:
            told = f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"
            progress.update(task, completed=line["step"], told=told)

        outcome = run(config, folder, texts=texts, on_step=seen)
    if not outcome.interrupted:
        print(f"{folder}: {outcome.steps} steps, held-out loss {outcome.last['held_out_loss']:.4f}")
    return outcome.interrupted


def _run_list(configs: dict[str, TrainingConfig], out: Path, texts: dict[str, Path], pool: Workers | None) -> bool:
    """Train all of them as an experiment, with a bar of those that are finished."""
    from refattn.experiments.runner import run_experiment
    from refattn.experiments.trainings import trainings

    with progress_bar(TextColumn("left"), TimeRemainingColumn()) as progress:
        task = progress.add_task("trainings", total=None)
        path = run_experiment(
            trainings(configs, out, texts),
            out,
            workers=pool,
            on_item=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(path)
    return False


def _failure(message: str, status: int = 1) -> typer.Exit:
    print(f"refattn: {message}", file=sys.stderr)
    return typer.Exit(status)
