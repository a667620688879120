"""Arrays in one ``.npz`` file, never pickled: written whole or not at all, read with suspicion.

What a file says about itself is judged before anything of that size is read, and no member is held but as the array
that is returned: a stream that inflates to more than its directory says is cut there, and its checksum tells.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from refattn._files import replacing
from refattn._npy import HEADER_ERRORS, PIECE, Header, read_content, read_header

_DAMAGED = (
    ValueError, EOFError, OSError, LookupError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError, *HEADER_ERRORS,
)  # fmt: skip
"""What zip, its decompressors (bz2: ``OSError``, as a seek to nowhere) and NumPy raise of bytes that are wrong."""

_MOST_DIRECTORY = 1 << 20
"""Longest directory that is read: Python's record of a member takes twenty times what it takes in the file."""

_ZIP_END, _ZIP_COUNT = 22, 10
"""Bytes of the record that ends a zip file, before its comment, and where in it the number of members stands."""

_MEMBER, _MOST_WINDOW = 30, 32 << 20
"""Bytes of a member's header before its name; the largest window of LZMA, four times xz's default."""


@contextmanager
def one_refusal(source: str, wanted: str) -> Iterator[None]:
    """Turn whatever the bytes of an opened file make their readers raise into one clear ``ValueError``."""
    try:
        yield
    except _DAMAGED as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source}: cannot be read ({told}); {wanted} was wanted") from error


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays, uncompressed; an older file stays as it was until the new one is complete."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def read_arrays(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read the arrays called `names`, and no others.

    Another file is refused, and one truncated, altered, pickled, compressed, or of another length than it says.
    """
    with Path(path).open("rb") as file:
        return arrays_in(file, names, str(path))


def arrays_in(
    content: bytes | IO[bytes], names: Collection[str], source: str, *, most_bytes: int = 0
) -> dict[str, NDArray[Any]]:
    """Read the arrays called `names` of an open archive, compressed if `most_bytes`, all of them, allows it."""
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    with one_refusal(source, f"an archive of plain arrays {', '.join(names)}"), opened(file) as archive:
        length = file.seek(0, os.SEEK_END)
        members = archive.infolist()
        found = [member.filename for member in members]
        if sorted(found) != sorted(f"{name}.npy" for name in names):
            raise ValueError(f"it holds {found[:20]}")
        for member in members:
            plain = member.compress_type == zipfile.ZIP_STORED
            if not (plain or most_bytes) or (plain and member.file_size > length):
                raise ValueError(f"{member.filename} is compressed, or longer than the file")
        if sum(member.file_size for member in members) > max(most_bytes, length):
            raise ValueError("it says that it is longer than any such file")
        return {name: _own_array(name, archive) for name in names}


@contextmanager
def opened(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose directory is short, names every member once, and is believed by the members."""
    with zipfile.ZipFile(_Bounded(file)) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names):
            raise ValueError(f"it holds {next(name for name in names if names.count(name) > 1)} twice")
        file.seek(-_ZIP_END - len(archive.comment), os.SEEK_END)
        (count,) = struct.unpack_from("<H", file.read(_ZIP_END), _ZIP_COUNT)
        if count != min(len(members), 0xFFFF):
            raise ValueError(f"{len(members)} members are found, {count} are claimed")
        for member in members:
            archive.open(member).close()
        yield archive


@contextmanager
def member_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[tuple[IO[bytes], Header]]:
    """Open a member at its content, its header read."""
    if member.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream: Any = _Inflated(archive, member)
        yield stream, read_header(stream)
    else:
        with archive.open(member) as stream:
            yield stream, read_header(stream)


def member_content(
    stream: IO[bytes], header: Header, member: zipfile.ZipInfo, *, keep: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """Read the content of a member that stands at it; ``ValueError`` if its checksum is another."""
    array, crc = read_content(stream, header, keep=keep)
    if crc != member.CRC:
        raise ValueError("its checksum is another one")
    return array


class _Bounded:
    """A file of which no more is read at once than a directory may take."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        most = _MOST_DIRECTORY
        content = self._file.read(size if 0 <= size <= most else most + 1)
        if len(content) > most:
            raise ValueError(f"a directory of more than {most} bytes is claimed")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Inflated:
    """A member compressed by bz2 or LZMA, of which no more is inflated than is read."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        assert archive.fp is not None
        self._file, self._left = archive.fp, member.compress_size
        self._file.seek(member.header_offset)
        self._place = member.header_offset + _MEMBER + sum(struct.unpack("<26x2H", self._file.read(_MEMBER)))
        lzma_ = member.compress_type == zipfile.ZIP_LZMA
        self._inflate: Any = (
            lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[self._window()]) if lzma_ else (bz2.BZ2Decompressor())
        )

    def _window(self) -> dict[str, int]:
        """Read what stands before a stream of LZMA; a window that nothing needs would be made before a byte is read."""
        _, length, packed, window = struct.unpack("<HHBI", self._raw(9))
        if length != 5 or window > _MOST_WINDOW:
            raise ValueError(f"a window of {window} bytes is claimed, at most {_MOST_WINDOW} were wanted")
        rest, lc = divmod(packed, 9)
        return {"id": lzma.FILTER_LZMA1, "dict_size": max(window, 4096), "lc": lc, "lp": rest % 5, "pb": rest // 5}

    def _raw(self, size: int) -> bytes:
        self._file.seek(self._place)
        raw = self._file.read(min(size, self._left))
        self._place, self._left = self._place + len(raw), self._left - len(raw)
        return raw

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer where the stream ends."""
        found = bytearray()
        while len(found) < size and not self._inflate.eof:
            raw = self._raw(PIECE) if self._inflate.needs_input else b""
            if self._inflate.needs_input and not raw:
                break
            found += self._inflate.decompress(raw, size - len(found))
        return bytes(found)


def _own_array(name: str, archive: zipfile.ZipFile) -> NDArray[Any]:
    member = archive.getinfo(f"{name}.npy")
    with member_header(archive, member) as (stream, header):
        if header.version != (1, 0):
            raise ValueError(f"{name} has the array format {header.version}")
        if header.dtype.kind not in "fiu" or header.fortran:
            raise ValueError(f"{name} is of dtype {header.dtype}, or in Fortran's order")
        if header.nbytes != member.file_size - header.length:
            left = member.file_size - header.length
            raise ValueError(f"{name} has {left} bytes, {header.shape} of {header.dtype} are {header.nbytes}")
        return member_content(stream, header, member)
