"""Arrays out of files that others wrote: NumPy's ``.npy`` and ``.npz``, nothing unpickled (ours).

What the headers say is judged, together, before anything of that size is made: with the length of what follows, with
the memory there is, and by whoever wants the arrays. `refattn._npz` reads this package's own files, and refuses what
this accepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._npy import Header, read_content, read_header
from refattn._npz import member_content, member_header, one_refusal, opened

Judge: TypeAlias = Callable[[Mapping[str, Header]], Mapping[str, tuple[int, ...]]]
"""Says of each array, from all headers alone, the shape of its first entries that are wanted; or raises."""


def whole(headers: Mapping[str, Header]) -> Mapping[str, tuple[int, ...]]:
    """Want every entry: a `Judge`."""
    return {name: header.shape for name, header in headers.items()}


def read_npy(path: Path, judge: Judge = whole) -> NDArray[Any]:
    """Return the array of a ``.npy`` file, which `judge` knows as h; ValueError names the file if it cannot be had."""
    with path.open("rb") as file:
        with one_refusal(str(path), "a NumPy array"):
            header = read_header(file)
        left = path.stat().st_size - header.length
        _require_numbers(str(path), header, left)
        keep = _room(judge, {"h": header}, {"h": str(path)})
        with one_refusal(str(path), "a NumPy array"):
            return read_content(file, header, keep=keep["h"])[0]


def read_npz(path: Path, wanted: Sequence[str], judge: Judge = whole) -> dict[str, NDArray[Any]]:
    """Return those arrays of a ``.npz`` file that are wanted and there, compressed or not; others are not looked at."""
    with path.open("rb") as file, ExitStack() as stack:
        with one_refusal(str(path), "an archive of NumPy arrays"):
            archive = stack.enter_context(opened(file))
        there = {name: archive.getinfo(f"{name}.npy") for name in wanted if f"{name}.npy" in archive.namelist()}
        told = {name: f"{path}: {name}" for name in there}
        streams, headers = {}, {}
        for name, member in there.items():
            with one_refusal(told[name], "a NumPy array"):
                streams[name], headers[name] = stack.enter_context(member_header(archive, member))
            _require_numbers(told[name], headers[name], member.file_size - headers[name].length)
        keep = _room(judge, headers, told)
        arrays = {}
        for name, member in there.items():
            with one_refusal(told[name], "a NumPy array"):
                arrays[name] = member_content(streams[name], headers[name], member, keep=keep[name])
        return arrays


def _require_numbers(name: str, header: Header, left: int) -> None:
    if header.dtype.hasobject:
        raise ValueError(f"{name}: Python objects came, numbers were wanted (nothing is unpickled)")
    if header.dtype.itemsize == 0:
        raise ValueError(f"{name}: dtype {header.dtype} came, numbers were wanted")
    if header.nbytes != left:
        raise ValueError(
            f"{name}: {header.shape} of {header.dtype} are {header.nbytes} bytes, the file has {left}:"
            " truncated or altered"
        )


def _room(judge: Judge, headers: Mapping[str, Header], told: Mapping[str, str]) -> Mapping[str, tuple[int, ...]]:
    """Return what is wanted of each array, all of which fits in memory."""
    keep = judge(headers)
    for name, header in headers.items():
        require_memory(told[name], math.prod(keep[name]) * header.dtype.itemsize)
    return keep
