"""The log of a training: JSON lines, one a step, that goes on where its checkpoint does (ours).

Lines of steps after the checkpoint, and whatever follows a line that was half written, are taken off when a training
goes on: the log of one that was killed and resumed has the lines of one that was not, but for the times in them.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from refattn._json import parsed


class Log:
    """An open log.

    Parameters
    ----------
    path : path
        The file; made if missing.
    steps : int
        Steps taken: later lines are taken off.

    Notes
    -----
    Opening takes O(file), a line O(1). A line reaches the operating system at once: a killed process loses none.
    Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "log.jsonl")
    >>> with Log(path, steps=0) as log:
    ...     for step in (1, 2, 3):
    ...         log.write({"step": step, "loss": 1.0 / step})
    >>> with Log(path, steps=2) as log:
    ...     log.write({"step": 3, "loss": 0.25})
    >>> [line["loss"] for line in read_log(path)]
    [1.0, 0.5, 0.25]
    """

    def __init__(self, path: str | os.PathLike[str], steps: int) -> None:
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by __exit__
        self._file.seek(0)
        self._file.truncate(_end(self._file.read(), steps))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        """Append a line.

        Parameters
        ----------
        line : dict
            With a ``step``, and finite numbers.
        """
        self._file.write(json.dumps(line, allow_nan=False).encode("utf-8") + b"\n")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lines of a log.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    list of dict
        ``step``, ``loss``, ``gradient_norm``, ``rate``, ``tokens_per_second``, and ``held_out_loss`` and
        ``held_out_accuracy`` where they were measured.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        A line is not one of a log; its number is named. A last line that was half written does not count.

    Notes
    -----
    Time and memory O(file). Source: ours.

    Examples
    --------
    `Log` shows it:

    >>> read_log(os.devnull)
    []
    """
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")[:-1]
    found = [_parsed(line) for line in lines]
    for number, line in enumerate(found, 1):
        if line is None:
            raise ValueError(f"{os.fspath(path)}: line {number} is not a JSON object with a step")
    return [line for line in found if line is not None]


def _end(content: bytes, steps: int) -> int:
    """Return where the lines of steps that were taken end."""
    end = 0
    while (newline := content.find(b"\n", end)) >= 0:
        line = _parsed(content[end:newline])
        if line is None or line["step"] > steps:
            break
        end = newline + 1
    return end


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = parsed(line)
    except ValueError:
        return None
    usable = isinstance(found, dict) and type(found.get("step")) is int
    return found if usable and all(map(_finite, found.values())) else None


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
