"""Arrays out of files that others wrote: NumPy's ``.npy`` and ``.npz``, nothing unpickled (ours).

What a header says is compared with the length of what follows it, and with the memory there is, before anything of that
size is made. `refattn._npz` reads this package's own files, and refuses what this accepts.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._npz import one_refusal

_MOST_HEADER = 1 << 16
_ZIP_END, _ZIP_COUNT = 22, 10
"""Bytes of the record that ends a zip file, before its comment, and where in it the number of members stands."""
_PIECE = 1 << 16
"""Bytes read at a time."""


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of a ``.npy`` file; ValueError names the file if it is none, or damaged, or holds objects."""
    with path.open("rb") as file:
        return _array(str(path), file, path.stat().st_size)


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return those arrays of a ``.npz`` file that are wanted and there, compressed or not; others are not looked at."""
    with path.open("rb") as file:
        with one_refusal(str(path), "an archive of NumPy arrays"):
            archive = zipfile.ZipFile(file)
            _require_whole_directory(file, archive)
        present = {name: f"{name}.npy" for name in wanted if f"{name}.npy" in archive.namelist()}
        return {
            name: _array(f"{path}: {name}", archive.open(member), archive.getinfo(member).file_size)
            for name, member in present.items()
        }


def _require_whole_directory(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raise unless the directory has as many members as its end says, each by the name in the member's own header."""
    members = archive.infolist()
    file.seek(-_ZIP_END - len(archive.comment), os.SEEK_END)
    (count,) = struct.unpack_from("<H", file.read(_ZIP_END), _ZIP_COUNT)
    if count != min(len(members), 0xFFFF):
        raise ValueError(f"{len(members)} members are found, {count} are claimed")
    for member in members:
        archive.open(member).close()


def _array(name: str, stream: IO[bytes], nbytes: int) -> NDArray[Any]:
    """Read one array from a stream that has `nbytes` left, as its directory says."""
    with one_refusal(name, "a NumPy array"):
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream, max_header_size=_MOST_HEADER)
    if dtype.hasobject:
        raise ValueError(f"{name}: Python objects came, numbers were wanted (nothing is unpickled)")
    size = math.prod(shape) * dtype.itemsize
    left = nbytes - stream.tell()
    if size != left:
        raise ValueError(f"{name}: {shape} of {dtype} are {size} bytes, the file has {left}: truncated or altered")
    require_memory(name, size)
    content, filled = bytearray(size), 0
    with one_refusal(name, "a NumPy array"):
        while piece := stream.read(min(_PIECE, size - filled)):  # at once, an archive would hold it twice
            content[filled : filled + len(piece)] = piece
            filled += len(piece)
    if filled != size:
        raise ValueError(f"{name}: {filled} bytes came, {size} were wanted: truncated or altered")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
