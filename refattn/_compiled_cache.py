"""Compiled loops on disk: the one place that knows where they are and who may have written them (ours).

The folder is ``$REFATTN_CACHE_DIR``, else ``refattn`` in the user's cache folder. In it is a folder for each
environment (versions, processor, settings of the compiler), and in that a file for each compiled loop: the SHA-256 of
what follows, then pickled machine code. Whoever can write to such a file can run anything as its reader: folders and
files that are another user's, or that others may write to, are never read.

A file is written beside its place and put there in one step; nothing is locked, for whatever two processes write under
one name is the same. A file may vanish at any time (`trim`, `clear`): it is compiled anew.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

VARIABLE = "REFATTN_CACHE_DIR"
OFF = "off"
BOUND = 256 << 20
"""Bytes above which the files used least recently are removed."""

_PREFIX, _SUFFIX, _UNFINISHED, _DAMAGED = "loops-", ".loop", ".tmp", "damaged"
_HOUR, _DAY = 3600.0, 86400.0
_DIGEST = sha256().digest_size
_said = False


class CompiledCacheWarning(UserWarning):
    """Compiled loops cannot be kept on disk, so every process compiles its own; given once at most in each.

    Notes
    -----
    With ``REFATTN_CACHE_DIR=off`` in the environment nothing is kept, and nothing is said. Source: ours.

    Examples
    --------
    >>> import warnings
    >>> from refattn import CompiledCacheWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", CompiledCacheWarning)
    """


class Kept(NamedTuple):
    """What the cache holds: the folder (None: turned off), loops, environments, bytes, damaged files found so far."""

    folder: Path | None
    loops: int
    environments: int
    size: int
    damaged: int


def folder() -> Path | None:
    """Return where compiled loops are kept, or None where that is turned off.

    Raises
    ------
    OSError
        There is no variable that names it, and no home folder.
    """
    named = os.environ.get(VARIABLE)
    if named == OFF:
        return None
    user = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if named:
            return Path(named).expanduser().absolute()
        if os.path.isabs(user):  # else it is to be ignored, says the XDG base directory specification
            return Path(user, "refattn")
        return Path.home() / ".cache" / "refattn"
    except RuntimeError as error:
        raise FileNotFoundError(f"no home folder: {error}") from None


def read(environment: str, name: str) -> bytes | None:
    """Return what was kept under a name, or None. What is damaged or not ours alone is removed, and counted.

    Raises
    ------
    OSError
        The folder is named by the user and cannot be used.
    """
    with _opened(environment) as place:
        if place is None:
            return None
        try:
            handle = os.open(name + _SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
            with open(handle, "rb") as file:
                facts = os.fstat(handle)
                content = file.read() if stat.S_ISREG(facts.st_mode) and _ours_alone(facts) else b""
                if sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
                    if time.time() - facts.st_mtime > _DAY:  # often enough to tell what is in use
                        with suppress(OSError):
                            os.utime(handle)
                    return content[_DIGEST:]
        except FileNotFoundError:
            return None
        except OSError:  # a link, or a disk that fails
            pass
        _count_damaged(place, name)
        return None


def write(environment: str, name: str, content: bytes) -> None:
    """Keep `content` under a name, whole or not at all; where that fails say so, once."""
    unfinished = f"{secrets.token_hex(8)}{_UNFINISHED}"
    with _opened(environment) as place:
        if place is None:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(unfinished, flags, 0o600, dir_fd=place), "wb") as file:
                file.write(sha256(content).digest() + content)
            os.replace(unfinished, name + _SUFFIX, src_dir_fd=place, dst_dir_fd=place)
        except FileNotFoundError:
            pass  # another process has just removed the folder
        except OSError as error:
            _say(error)
        finally:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=place)
    with suppress(OSError):
        trim()


def discard(environment: str, name: str) -> None:
    """Remove what cannot be used, and count it."""
    with _opened(environment) as place:
        if place is not None:
            _count_damaged(place, name)


def trim(bound: int = BOUND) -> None:
    """Remove what was used least recently until `bound` bytes are left, and what a killed process left unfinished."""
    files = sorted(_files(), key=lambda found: found[1].st_mtime)
    size = sum(facts.st_size for _, facts in files)
    for path, facts in files:
        abandoned = path.suffix == _UNFINISHED and time.time() - facts.st_mtime > _HOUR
        if size > bound or abandoned:
            _remove(path)
            size -= facts.st_size


def clear() -> int:
    """Remove all that is kept, and nothing else that the folder may hold; return how many loops that were."""
    files = list(_files())
    for path, _ in files:
        _remove(path)
    root = folder()
    if root is not None:
        (root / _DAMAGED).unlink(missing_ok=True)
    return sum(path.suffix == _SUFFIX for path, _ in files)


def require_folder() -> None:
    """Raise ``OSError`` where the user named a folder that cannot be used; make it if it is missing."""
    if os.environ.get(VARIABLE):
        with _opened(""):
            pass


def kept() -> Kept:
    """Count what is kept."""
    root, files = folder(), list(_files())
    loops = [path for path, _ in files if path.suffix == _SUFFIX]
    damaged = 0
    if root is not None:
        with suppress(OSError):
            damaged = (root / _DAMAGED).stat().st_size
    return Kept(root, len(loops), len({p.parent for p in loops}), sum(facts.st_size for _, facts in files), damaged)


def _files() -> Iterator[tuple[Path, os.stat_result]]:
    root = folder()
    if root is not None and root.is_dir():
        for path in root.glob(f"{_PREFIX}*/*"):
            with suppress(OSError):  # another process has just removed it
                if path.suffix in (_SUFFIX, _UNFINISHED):
                    yield path, path.lstat()


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    with suppress(OSError):  # not empty
        path.parent.rmdir()


def _count_damaged(place: int, name: str) -> None:
    """Remove the file and add a byte to a file of the whole folder: processes add theirs without a lock."""
    with suppress(OSError):
        os.unlink(name + _SUFFIX, dir_fd=place)
        handle = os.open(f"../{_DAMAGED}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=place)
        try:
            os.write(handle, b".")
        finally:
            os.close(handle)


@contextmanager
def _opened(environment: str) -> Iterator[int | None]:
    """Open the environment's folder, made if missing; None where it cannot be had, which is said once."""
    handles: list[int] = []
    try:
        try:
            root = folder()
            if root is not None:
                root.parent.mkdir(parents=True, exist_ok=True)
                handles.append(_own_folder(root))
                if environment:
                    handles.append(_own_folder(root / f"{_PREFIX}{environment}", handles[0]))
                if os.environ.get(VARIABLE) and not os.access(root, os.W_OK | os.X_OK):
                    raise PermissionError(f"{root} is not writable")
        except OSError as error:
            if os.environ.get(VARIABLE):
                raise type(error)(f"{VARIABLE}={os.environ[VARIABLE]} cannot keep compiled loops: {error}") from error
            _say(error)
            yield None
        else:
            yield handles[-1] if handles else None
    finally:
        for handle in handles:
            os.close(handle)


def _own_folder(path: Path, above: int | None = None) -> int:
    """Open a folder, made if missing, that is the user's and that nobody else may write to."""
    name = path if above is None else path.name
    inner = 0 if above is None else os.O_NOFOLLOW  # the folder itself may be a link
    for attempts_left in reversed(range(20)):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above)
        try:
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | inner, dir_fd=above)
            break
        except FileNotFoundError:  # another process has just removed it
            if not attempts_left:
                raise
    if _ours_alone(os.fstat(handle)):
        return handle
    os.close(handle)
    raise PermissionError(f"{path} belongs to another user, or others may write to it (it needs mode 700)")


def _ours_alone(facts: os.stat_result) -> bool:
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _say(error: OSError) -> None:
    global _said
    if not _said:
        _said = True
        message = f"compiled loops are not kept, so every process compiles its own: {error}. {VARIABLE} names a folder"
        warnings.warn(f"{message}, or is {OFF!r}", CompiledCacheWarning, stacklevel=2)
