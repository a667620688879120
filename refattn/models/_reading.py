"""Files in the formats of other libraries: there, readable with the library, whole; or an error naming the file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refattn._needs import missing

_DAMAGED: tuple[type[Exception], ...] = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RuntimeError, EOFError,
    struct.error,
)  # fmt: skip
"""What parsers raise of bytes that are wrong."""


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
        raise missing(f"{path}: {what}", library) from error


class StoredTensors(Mapping[str, NDArray[Any]]):
    """The tensors of a file: shapes are known without reading, and an array that is read is held by nobody else."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header alone."""
        raise NotImplementedError

    def read(self, name: str, dtype: DTypeLike) -> NDArray[Any]:
        """Read a tensor into a new array of this dtype, with no other copy of it."""
        raise NotImplementedError


@contextmanager
def reading(path: Path, kind: str, what: str = "") -> Iterator[None]:
    """Give whatever a parser stumbles over in a damaged file one voice, naming the file."""
    try:
        with np.errstate(all="ignore"):
            yield
    except _DAMAGED as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: {what}cannot be read ({told}); a complete {kind} file was wanted, this one is truncated, damaged"
            " or of another format"
        ) from error


@contextmanager
def library_reading(path: Path, wanted: str) -> Iterator[None]:
    """Turn what a Rust library raises of a file into one clear ``ValueError``.

    It has its own plain ``Exception``, and a panic, which is none: what catches every ``Exception`` lets it through.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read ({told}); {wanted} was wanted") from error
