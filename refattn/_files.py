"""Files: the one place where they are written, whole or not at all.

A new file is made beside the old one, filled, flushed to the disk and put in its place in one step. Whatever goes wrong
before that step (a full disk, an exception, a killed process) leaves the old file as it was.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` when the ``with`` block ends without an exception.

    Parameters
    ----------
    path : path
        The file; its folder must exist.

    Yields
    ------
    file object
        Open for writing bytes.

    Raises
    ------
    OSError
        The file cannot be written; an older one stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "numbers")
    >>> with replacing(path) as file:
    ...     _ = file.write(b"one, two")
    >>> path.read_bytes()
    b'one, two'
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content`, text as UTF-8, by `replacing`."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def _umask() -> int:
    """Return the process's mask of file permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
