"""Files that a command writes on request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from refattn._files import write_whole


def write_if_asked(file: Path | None, text: Callable[[], str]) -> None:
    """Write a file whole or not at all; a file that cannot be written is one clear line and status 1."""
    if file is None:
        return
    try:
        write_whole(file, text())
    except OSError as error:
        print(f"refattn: {file} could not be written: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1) from None
