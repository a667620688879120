"""What several commands do: a bar on the standard error, and files that are written on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from refattn._files import write_whole


def progress_bar(*more: ProgressColumn) -> Progress:
    """Return a bar of what is done, of how much, and since when, which vanishes at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    return Progress(*columns, console=Console(stderr=True), transient=True)


def require_folders(*files: Path | None) -> None:
    """Refuse files in folders that do not exist, before anything is computed."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(f"the folder of {file} does not exist")


def as_json(data: Any) -> str:
    """Return the text of a JSON file."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_if_asked(file: Path | None, text: Callable[[], str]) -> None:
    """Write a file whole or not at all; a file that cannot be written is one clear line and status 1."""
    if file is None:
        return
    try:
        write_whole(file, text())
    except OSError as error:
        print(f"refattn: {file} could not be written: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1) from None
