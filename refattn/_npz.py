"""Arrays in one ``.npz`` file, never pickled: written whole or not at all, read with suspicion.

What a file says about itself is compared with its length before anything of that size is made.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from refattn._files import replacing

NPY_ERRORS = (SyntaxError, TypeError, RecursionError, OverflowError, MemoryError, TokenError)
"""What NumPy lets through, beside ``ValueError``, of the Python literal that an array's header is."""

_DAMAGED = (
    ValueError, EOFError, OSError, LookupError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError, *NPY_ERRORS,
)  # fmt: skip
"""What zip, its decompressors (bz2: ``OSError``, as a seek to nowhere) and NumPy raise of bytes that are wrong."""


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
    return arrays_in(Path(path).read_bytes(), names, str(path))


def arrays_in(content: bytes, names: Collection[str], source: str, *, most_bytes: int = 0) -> dict[str, NDArray[Any]]:
    """Read the arrays called `names` of an archive in memory, compressed if `most_bytes`, all of them, allows it."""
    with (
        one_refusal(source, f"an archive of plain arrays {', '.join(names)}"),
        zipfile.ZipFile(io.BytesIO(content)) as archive,
    ):
        members = archive.infolist()
        found = [member.filename for member in members]
        if sorted(found) != sorted(f"{name}.npy" for name in names):
            raise ValueError(f"it holds {found[:20]}")
        for member in members:
            plain = member.compress_type == zipfile.ZIP_STORED
            if not (plain or most_bytes) or (plain and member.file_size > len(content)):
                raise ValueError(f"{member.filename} is compressed, or longer than the file")
        if sum(member.file_size for member in members) > max(most_bytes, len(content)):
            raise ValueError("it says that it is longer than any such file")
        return {name: _array(name, archive.read(f"{name}.npy")) for name in names}


def _array(name: str, content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} has the array format {version}")
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    if dtype.kind not in "fiu" or fortran:
        raise ValueError(f"{name} is of dtype {dtype}, or in Fortran's order")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != len(content) - stream.tell():
        raise ValueError(f"{name} has {len(content) - stream.tell()} bytes, {shape} of {dtype} are {size}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape).copy()
