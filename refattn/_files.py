"""Files: the one place where they are written, whole or not at all.

A new file is made beside the old one, filled, flushed to the disk and put in its place in one step. Whatever goes wrong
before that step (a full disk, an exception, a killed process) leaves the old file as it was; only a killed process
leaves its unfinished file behind, a hidden one that ends in ``.tmp``.

Results that come one by one are appended instead, a line at a time, by one process at a time: what goes wrong then
costs the line in hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` when the ``with`` block ends without an exception.

    A symbolic link stays, and what it points to is replaced; a device or a pipe is written to as it is.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "numbers")
    >>> with replacing(path) as file:
    ...     _ = file.write(b"one, two")
    >>> path.read_bytes()
    b'one, two'
    """
    target = Path(os.path.realpath(path))  # through a symbolic link, which stays
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as device:  # such as /dev/stdout: nothing can take its place; a folder is refused
            yield device
        return
    name = target.with_name(f".{secrets.token_hex(8)}.tmp")  # short: the file's own name may be as long as names can be
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, name)
        os.replace(name, target)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content`, text as UTF-8, by `replacing`; what of a file's name is no text as JSON writes it."""
    with replacing(path) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def sha256_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of what an open file has from here on, of which no more than a piece is held."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 16):
        digest.update(piece)
    return digest.hexdigest()


def append(path: str | os.PathLike[str], line: bytes, *, at: int) -> int:
    """Write `line` at the byte `at` of a file, cut there, flush it to the disk, and return where the file ends."""
    with open(path, "r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return at + len(line)


@contextmanager
def exclusively(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock file `path` during the ``with`` block, or raise ``BlockingIOError``; remove it afterwards.

    The system forgets the lock with the process, however that ends; the file that a killed one leaves locks nobody out.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(handle)):
                break  # and not a file that its last holder has just removed
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(handle)
