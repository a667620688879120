"""Files in the formats of other libraries: there, readable with the library, whole; or an error naming the file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def existing(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path of a file that is there."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, a {what} was wanted")
    return file


@contextmanager
def needing(library: str, path: Path, what: str = "reading it") -> Iterator[None]:
    """Say what an import is needed for, where the library is not installed."""
    try:
        yield
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path}: {what} needs the {library} library: pip install 'refattn[models]'", name=library
        ) from error


@contextmanager
def reading(path: Path, kind: str, what: str = "", *also: type[Exception]) -> Iterator[None]:
    """Give whatever a parser stumbles over in a damaged file one voice, naming the file."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RuntimeError, EOFError,
        struct.error, *also,
    ) as error:  # fmt: skip
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: {what}cannot be read ({told}); a complete {kind} file was wanted, this one is truncated, damaged"
            " or of another format"
        ) from error
