"""What a GGUF file says of itself, every length of it held to the file (format: ggml, GGUF 2 and 3).

    magic, version, number of tensors, number of pairs
    pairs: key, kind, value          a text is a length and UTF-8; a list, a kind, a length and its entries
    tensors: name, axes (the one that varies fastest first), type, offset in the data
    data, from the next multiple of the alignment on: tensors in the order of their offsets, each at a multiple

Nothing is made of the size that a number claims: scalars are decoded, texts and lists noted and decoded when they are
looked up, tensors mapped. Tensors that overlap, leave a hole, are not aligned, or leave bytes of the file unexplained
are refused, as llama.cpp refuses them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_LAYOUTS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""NumPy's name of a scalar, by kind."""
_MAGIC = int.from_bytes(b"GGUF", "little")
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_MOST_AXES = 4
_MOST_ENTRIES, _MOST_NAME = 1 << 15, 512
"""Pairs, and tensors, and bytes of a name: more than any model has, so that what is kept of them stays small."""


@dataclass(frozen=True)
class _Noted:
    """A text or a list that lies in the file: its kind, that of its entries, how many, and where they begin."""

    kind: int
    entry: int
    length: int
    place: int


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor's record, its content mapped.

    `shape` is NumPy's; `tensor_type` and `data` are the ``gguf`` library's, `data` of a quantised tensor being bytes.
    """

    name: str
    shape: tuple[int, ...]
    tensor_type: Any
    block: tuple[int, int]  # entries and bytes of a block
    content: Bytes

    @property
    def data(self) -> NDArray[Any]:
        """The content as an array, ``(…, bytes)`` if quantised."""
        entries, size = self.block
        if self.tensor_type.name in _PLAIN:
            return self.content.view(_PLAIN[self.tensor_type.name]).reshape(self.shape)
        return self.content.reshape(*self.shape[:-1], self.shape[-1] // entries * size)


_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


class Metadata(Mapping[str, Any]):
    """Every key with its value; texts and lists are decoded when they are looked up, and not kept."""

    def __init__(self, path: Path, content: Bytes, values: Mapping[str, Any]) -> None:
        self._path, self._content, self._values = path, content, values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if not isinstance(value, _Noted):
            return value
        try:
            return _decoded(self._content, value)
        except ValueError as error:
            raise ValueError(f"{self._path}: metadata {key!r} cannot be read ({error})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def length(self, key: str) -> int | None:
        """Return how many entries the list at `key` has, without decoding it; None if there is no list."""
        value = self._values.get(key)
        return value.length if isinstance(value, _Noted) and value.kind == _ARRAY else None


def read_header(path: Path) -> tuple[Metadata, dict[str, GGUFTensor]]:
    """Return the metadata and the tensors' records of a file that is sound, or raise ``ValueError``."""
    if not path.stat().st_size:
        raise ValueError("it is empty")
    content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    header = _Header(content)
    magic, version = header.numbers("<II")
    if magic != _MAGIC or version not in (2, 3):
        raise ValueError(f"its magic number is {magic:#x} and its version {version}")
    tensors, pairs = header.numbers("<QQ")
    if max(tensors, pairs) > _MOST_ENTRIES:
        raise ValueError(f"{tensors} tensors and {pairs} pairs are claimed, at most {_MOST_ENTRIES} were wanted")
    values: dict[str, Any] = {}
    alignment = 32
    for _ in range(pairs):
        key, (kind,) = header.name(), header.numbers("<I")
        if key in values:
            raise ValueError(f"the key {key!r} comes twice")
        values[key] = header.value(kind)
        if key == "general.alignment":
            alignment = values[key]
            if kind != _UINT32 or alignment <= 0 or alignment & (alignment - 1):
                raise ValueError(f"its alignment is {alignment!r}, a power of two (uint32) was wanted")
    claims: dict[str, _Claim] = {}
    for _ in range(tensors):
        claim = header.tensor()
        if claim.name in claims:
            raise ValueError(f"the tensor {claim.name!r} comes twice")
        claims[claim.name] = claim
    return Metadata(path, content, values), _laid_out(content, header.place, alignment, claims)


@dataclass(frozen=True)
class _Claim:
    """A tensor as the header has it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _laid_out(content: Bytes, place: int, alignment: int, claims: Mapping[str, _Claim]) -> dict[str, GGUFTensor]:
    """Return the tensors, which follow one another from `place` on to the end of the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    types = {int(known): known for known in GGMLQuantizationType}
    start = end = -(-place // alignment) * alignment
    found = {}
    for claim in sorted(claims.values(), key=lambda claim: claim.offset):
        if claim.kind not in types:
            raise ValueError(f"tensor {claim.name!r} is of type {claim.kind}, which is none of ggml's")
        block = GGML_QUANT_SIZES[types[claim.kind]]
        if (claim.shape[-1] if claim.shape else 1) % block[0]:
            raise ValueError(f"tensor {claim.name!r} has rows of {claim.shape[-1]}, blocks have {block[0]} entries")
        size = 1
        for axis in claim.shape:
            size *= axis
        size = size // block[0] * block[1]
        wanted = -(-end // alignment) * alignment
        if start + claim.offset != wanted:
            raise ValueError(
                f"tensor {claim.name!r} begins at byte {claim.offset} of the data, {wanted - start} was wanted: tensors"
                " follow one another"
            )
        end = wanted + size
        if end > len(content):
            raise ValueError(f"tensor {claim.name!r} ends at byte {end}, the file has {len(content)}")
        found[claim.name] = GGUFTensor(claim.name, claim.shape, types[claim.kind], block, content[wanted:end])
    if len(content) > max(-(-end // alignment) * alignment, place):
        raise ValueError(f"{len(content) - end} bytes come after the last tensor")
    return {name: found[name] for name in claims}


class _Header:
    """A place in the file that moves forward, never past its end."""

    def __init__(self, content: Bytes) -> None:
        self.content, self.view, self.place = content, content.data, 0

    def skip(self, size: int) -> None:
        left = len(self.content) - self.place
        if size > left:
            raise ValueError(f"{size} bytes are claimed at byte {self.place}, {left} are left")
        self.place += size

    def numbers(self, layout: str) -> tuple[int, ...]:
        start = self.place
        self.skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self.view, start)

    def name(self) -> str:
        (size,) = self.numbers("<Q")
        if not 0 < size <= _MOST_NAME:
            raise ValueError(f"a name of {size} bytes is claimed, 1 … {_MOST_NAME} were wanted")
        start = self.place
        self.skip(size)
        return str(self.view[start : self.place], "utf-8")

    def text(self) -> _Noted:
        (size,) = self.numbers("<Q")
        start = self.place
        self.skip(size)
        return _Noted(_STRING, _STRING, size, start)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            start = self.place
            self.skip(_size(kind))
            return _numbers(self.content, kind, 1, start)[0]
        entry, length = self.numbers("<IQ")
        start = self.place
        if entry == _STRING:
            for _ in range(length):  # every text takes bytes of the file, so a false count ends with it
                self.skip(*self.numbers("<Q"))
        else:
            self.skip(length * _size(entry))
        return _Noted(_ARRAY, entry, length, start)

    def tensor(self) -> _Claim:
        name, (axes,) = self.name(), self.numbers("<I")
        if axes > _MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes is claimed, at most {_MOST_AXES} were wanted")
        shape = self.numbers(f"<{axes}Q")[::-1]
        kind, offset = self.numbers("<IQ")
        return _Claim(name, shape, kind, offset)


def _size(kind: int) -> int:
    if kind not in _LAYOUTS:
        raise ValueError(f"values of the type {kind} are claimed")
    return np.dtype(_LAYOUTS[kind]).itemsize


def _numbers(content: Bytes, kind: int, length: int, place: int) -> list[Any]:
    found = content[place : place + length * _size(kind)].view(_LAYOUTS[kind]).tolist()
    if kind != _BOOL:
        return list(found)
    if not set(found) <= {0, 1}:
        raise ValueError(f"a boolean is {max(found)}, 0 or 1 was wanted")
    return [one == 1 for one in found]


def _decoded(content: Bytes, noted: _Noted) -> Any:
    if noted.kind == _STRING:
        return str(content[noted.place : noted.place + noted.length].tobytes(), "utf-8")
    if noted.entry != _STRING:
        return _numbers(content, noted.entry, noted.length, noted.place)
    header, texts = _Header(content), []
    header.place = noted.place
    for _ in range(noted.length):
        text = header.text()
        texts.append(str(header.view[text.place : text.place + text.length], "utf-8"))
    return texts
