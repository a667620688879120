"""Whether a GGUF file's header fits in the file, before the ``gguf`` library believes it (format: ggml, GGUF 2 and 3).

The library walks an array for as many entries as its header claims, past the end of the file, where every entry is
empty: a claim of 2⁶² entries is walked for ever. Here every length is compared with what is left of the file, and lists
of lists, which the library flattens by recursion, are refused.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a scalar, by type."""
_MAGIC = int.from_bytes(b"GGUF", "little")
_STRING, _ARRAY = 8, 9
_MOST_AXES = 4


def require_sound_header(path: Path) -> None:
    """Raise ``ValueError`` unless every length in the header fits in the file; the other byte order is refused."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Header(content)
            magic, version = header.numbers("<II")
            if magic != _MAGIC or version not in (2, 3):
                raise ValueError(f"its magic number is {magic:#x} and its version {version}")
            tensors, pairs = header.numbers("<QQ")
            for _ in range(pairs):  # every pair takes bytes of the file, so a false count ends with it
                header.string()
                header.value(*header.numbers("<I"))
            for _ in range(tensors):
                header.tensor()


class _Header:
    """A place in the file that moves forward, never past its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, 0

    def skip(self, size: int) -> None:
        left = len(self.content) - self.place
        if size > left:
            raise ValueError(f"{size} bytes are claimed at byte {self.place}, {left} are left")
        self.place += size

    def numbers(self, layout: str) -> tuple[int, ...]:
        start = self.place
        self.skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self.content, start)

    def string(self) -> None:
        (size,) = self.numbers("<Q")
        self.skip(size)

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            entry, length = self.numbers("<IQ")
            if entry == _STRING:
                for _ in range(length):
                    self.string()
            else:
                self.skip(length * self._size(entry))
        else:
            self.skip(self._size(kind))

    def tensor(self) -> None:
        self.string()
        (axes,) = self.numbers("<I")
        if axes > _MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes is claimed, at most {_MOST_AXES} were wanted")
        self.skip(8 * axes + 4 + 8)

    @staticmethod
    def _size(kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"values of the type {kind} are claimed")
        return _SIZES[kind]
