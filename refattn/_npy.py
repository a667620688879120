"""One array of NumPy's format, whose header is judged before its content is read, and read piece by piece.

NumPy's own reader believes a header's length, which may be four gigabytes, and an archive's reader inflates a member
whole. Here nothing is held but the array that is returned and a piece.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

HEADER_ERRORS = (SyntaxError, TypeError, RecursionError, OverflowError, MemoryError, TokenError)
"""What NumPy lets through, beside ``ValueError``, of the Python literal that an array's header is."""

PIECE = 1 << 16
"""Bytes read at a time."""

_MOST_HEADER = 1 << 16
_LENGTHS = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}
"""How the length of the header is stored, by the version of the format."""


@dataclass(frozen=True)
class Header:
    """What an array says about itself, and how many bytes that took."""

    version: tuple[int, int]
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int
    crc: int  # of the bytes so far

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> Header:
    """Read what stands before the content; ``ValueError``, or one of `HEADER_ERRORS`, if that is no header."""
    magic = stream.read(npy.MAGIC_LEN)
    version = npy.read_magic(io.BytesIO(magic))
    if version not in _LENGTHS:
        raise ValueError(f"it has the array format {version}")
    raw = stream.read(struct.calcsize(_LENGTHS[version]))
    (length,) = struct.unpack(_LENGTHS[version], raw)
    if length > _MOST_HEADER:
        raise ValueError(f"its header claims {length} bytes")
    raw += stream.read(length)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(io.BytesIO(raw), max_header_size=_MOST_HEADER)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    return Header(version, shape, fortran, dtype, len(magic) + len(raw), zlib.crc32(raw, zlib.crc32(magic)))


def read_content(stream: IO[bytes], header: Header, *, keep: tuple[int, ...] | None = None) -> tuple[NDArray[Any], int]:
    """Read the content; return the array's first entries, of the shape `keep`, and the checksum of all bytes so far.

    Raise ``EOFError`` if the stream ends before the array does.
    """
    order = slice(None, None, -1 if header.fortran else 1)
    whole, kept = header.shape[order], (header.shape if keep is None else keep)[order]
    cut = [axis for axis, (size, first) in enumerate(zip(whole, kept, strict=True)) if first != size]
    last = cut[-1] if cut else 0  # every run begins with what is kept of it, or is left out
    run, first = (math.prod(shape[last:]) * header.dtype.itemsize for shape in (whole, kept))
    content = np.empty(math.prod(kept) * header.dtype.itemsize, np.uint8)
    crc, place = header.crc, 0
    for index in np.ndindex(*whole[:last]):
        wanted = first if all(i < most for i, most in zip(index, kept, strict=False)) else 0
        done = 0
        while done < run:
            got = stream.read(min(PIECE, run - done))
            if not got:
                raise EOFError("it ends before the array does")
            crc = zlib.crc32(got, crc)
            here = got[: max(wanted - done, 0)]
            content[place : place + len(here)] = np.frombuffer(here, np.uint8)
            place, done = place + len(here), done + len(got)
    return content.view(header.dtype).reshape(kept[order], order="F" if header.fortran else "C"), crc
