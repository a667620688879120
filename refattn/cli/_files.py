"""What several commands do: a bar on the standard error, and files that are written on request."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from refattn._files import write_whole
from refattn.cli._streams import OUTPUT_ERROR, console, note_file

STANDARD_OUTPUT = Path("-")
"""The target that means the standard output, where what is written is text."""


_SECONDS = 5.0
"""From one line of progress to the next, where there is no terminal for a bar."""


class _Bar(Progress):
    """A bar that vanishes at the end; without a terminal, a line every few seconds."""

    def __init__(self, *columns: ProgressColumn, screen: Console) -> None:
        super().__init__(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        self._begun = self._said = time.monotonic()

    def update(self, *arguments: Any, **fields: Any) -> None:
        """Note what is done; say it, where nothing shows it."""
        super().update(*arguments, **fields)
        now = time.monotonic()
        if self.disable and now - self._said >= _SECONDS:
            self._said = now
            for task in self.tasks:
                of = "" if task.total is None else f" of {task.total:.0f}"
                told = f"{task.description}: {task.completed:.0f}{of}, {now - self._begun:.0f} s"
                self.console.print(told, soft_wrap=True)


def progress_bar(*more: ProgressColumn) -> Progress:
    """Return a bar of what is done, of how much, and since when; without a terminal a line every few seconds."""
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    return _Bar(*columns, screen=console(stderr=True))


def require_targets(targets: Mapping[str, Path | None], *, read: Path | None = None) -> None:
    """Refuse targets, by option, that cannot be written or are one file, before anything is computed.

    `read` is a file that the command reads, and that none of them may be.
    """
    seen: dict[Path, str] = {} if read is None else {Path(os.path.realpath(read)): "what is read"}
    for option, target in targets.items():
        if target is None:
            continue
        place = target if target == STANDARD_OUTPUT else Path(os.path.realpath(target))
        told = _why_not(target)
        if place in seen:
            told = f"{target} is {seen[place]} as well, a file of its own was wanted"
        if told:
            raise typer.BadParameter(told, param_hint=option)
        seen[place] = f"the target of {option}"


def _why_not(target: Path) -> str:
    """Why a file cannot be written to, or nothing."""
    if target == STANDARD_OUTPUT:
        return ""
    folder = target.absolute().parent
    try:
        if not folder.is_dir():
            return f"the folder of {target} does not exist"
        if target.is_dir():
            return f"{target} is a folder, a file was wanted"
        if not target.exists() or target.is_file():
            tempfile.TemporaryFile(dir=folder).close()  # a new file takes the place of an old one
        elif not os.access(target, os.W_OK):
            return f"{target} cannot be written: {os.strerror(errno.EACCES)}"
    except OSError as error:
        return f"{target} cannot be written: {error.strerror}"
    return ""


def as_json(data: Any) -> str:
    """Return the text of a JSON file."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def shown_beside(*targets: Path | None) -> AbstractContextManager[Any]:
    """Show what follows on the standard output, or on the standard error where a target has the first."""
    return redirect_stdout(sys.stderr) if any(map(_is_standard_output, targets)) else nullcontext()


def _is_standard_output(target: Path | None) -> bool:
    """Whether a target is the standard output, by its name here or as a file such as ``/dev/stdout``."""
    if target is None or target == STANDARD_OUTPUT:
        return target is not None
    try:
        return not target.is_file() and os.path.samestat(target.stat(), os.fstat(1))
    except OSError:
        return False


def write_each(contents: Mapping[Path | None, Callable[[], str | bytes]]) -> dict[Path, bool]:
    """Write files, each whole or not at all; say in one clear line each what cannot be, and return which were."""
    return {file: write_one(file, content()) for file, content in contents.items() if file is not None}


def write_all(contents: Mapping[Path | None, Callable[[], str | bytes]]) -> None:
    """Write files as `write_each`, and end with `OUTPUT_ERROR` where one could not be written."""
    if not all(write_each(contents).values()):
        raise typer.Exit(OUTPUT_ERROR)


def announce(written: Mapping[Path, bool]) -> None:
    """Say which files were written, of those that were to be."""
    for file, done in written.items():
        if done and not _is_standard_output(file):
            print(f"written: {file}")


def write_one(file: Path, content: str | bytes) -> bool:
    """Write a file whole or not at all; say in a line where it cannot be written, and return whether it was."""
    try:
        if file == STANDARD_OUTPUT:
            print(content, end="")
        else:
            write_whole(file, content)
            note_file()
    except OSError as error:
        print(f"refattn: {file} could not be written: {error.strerror or error}", file=sys.stderr)
        return False
    return True
