"""Queries, keys and values of real attention heads, shipped with the package.

They come from SmolLM2-135M-Instruct reading the opening of Hamlet: one whole key-value group (three query heads and
the key-value head they share) of each of a few layers, rotary positions applied, 2,048 tokens. No model is needed to
load them; ``refattn.laboratory.real_heads`` computes them anew. What ships is rounded to float16, and that rounding is
the data: widening it to float32 or float64 is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refattn._files import sha256_of
from refattn._json import read_json
from refattn._npz import arrays_in
from refattn._validation import FloatArray

__all__ = ["RealHeads", "arrays_sha256", "load_real_heads", "read_manifest"]

ARRAYS_FILE = "smollm2_shakespeare.npz"
MANIFEST_FILE = "smollm2_shakespeare.json"
MOST_BYTES = 64 << 20
"""More than the arrays take, compressed as they are: a file that says it holds more is not one of these."""
ARRAY_NAMES = ("q", "k", "v", "layers", "kv_heads", "tokens")


@dataclass(frozen=True)
class RealHeads:
    """Heads of L layers, G query heads each, on one text of n tokens.

    Attributes
    ----------
    q : ndarray, shape (L, G, n, d)
        Queries, rotary positions applied. Logits are ``q·k / √d``, the mask is causal.
    k, v : ndarray, shape (L, 1, n, d)
        Keys, rotary positions applied, and values: one head, shared by the G query heads.
    layers, kv_heads : ndarray of int64, shape (L,)
        Which layers of the model, from 0, and which key-value head of each.
    tokens : ndarray of int64, shape (n,)
        The text as the model's token numbers.
    sha256 : str
        Of the arrays, as `arrays_sha256` computes it.

    Examples
    --------
    >>> from refattn.testing.real_heads import load_real_heads
    >>> load_real_heads().layers.tolist()
    [0, 7, 12, 18, 29]
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    layers: NDArray[np.int64]
    kv_heads: NDArray[np.int64]
    tokens: NDArray[np.int64]
    sha256: str


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the arrays' names, types, shapes and bytes (little-endian, row by row).

    Unlike the hash of the compressed file it does not depend on the version of the compressor.

    Parameters
    ----------
    arrays : mapping from str to ndarray, any shape and dtype
        By name.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    AttributeError
        A value is not an array.

    Notes
    -----
    Time O(bytes). Source: ours.

    Examples
    --------
    >>> arrays_sha256({"x": np.arange(3)}) == arrays_sha256({"x": np.arange(3.0)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def load_real_heads(*, dtype: DTypeLike = np.float32, folder: Traversable | None = None) -> RealHeads:
    """Load the shipped heads, verified against their manifest.

    Parameters
    ----------
    dtype : dtype, optional
        Of q, k and v; float32 by default. Every floating dtype holds the stored float16 numbers exactly.
    folder : Traversable, optional
        Where the file and its manifest lie (a `pathlib.Path`, say); by default where the package keeps them.

    Returns
    -------
    RealHeads
        Arrays and their hash.

    Raises
    ------
    FileNotFoundError
        The file or its manifest is missing.
    ValueError
        The file is not the one the manifest describes: truncated, altered, or holding pickled objects, which
        are never unpickled.

    Notes
    -----
    Time and memory O(L G n d). Source: ours.

    Examples
    --------
    >>> heads = load_real_heads()
    >>> heads.q.shape, heads.k.shape, heads.q.dtype
    ((5, 3, 2048, 64), (5, 1, 2048, 64), dtype('float32'))
    """
    folder = files("refattn.testing") / "data" if folder is None else folder
    manifest = read_manifest(folder)
    with _opened(folder, ARRAYS_FILE) as file:
        found = sha256_of(file)
        if found != manifest["sha256"]:
            raise ValueError(
                f"{ARRAYS_FILE}: {file.tell()} bytes with SHA-256 {found} came, {manifest['sha256']} was wanted;"
                " the file is truncated or altered"
            )
        arrays = arrays_in(file, ARRAY_NAMES, ARRAYS_FILE, most_bytes=MOST_BYTES)
    digest = arrays_sha256(arrays)
    if digest != manifest["arrays_sha256"]:
        raise ValueError(f"{ARRAYS_FILE}: arrays with SHA-256 {digest} came, {manifest['arrays_sha256']} was wanted")
    wide: dict[str, Any] = {name: arrays[name].astype(dtype) for name in ("q", "k", "v")}
    whole: dict[str, Any] = {name: arrays[name].astype(np.int64) for name in ("layers", "kv_heads", "tokens")}
    return RealHeads(**wide, **whole, sha256=digest)


def read_manifest(folder: Traversable) -> dict[str, Any]:
    """Return the manifest in `folder`: where the heads come from, their shapes and their hashes.

    Parameters
    ----------
    folder : Traversable
        As for `load_real_heads`.

    Returns
    -------
    dict
        Where the heads come from, their shapes and their hashes.

    Raises
    ------
    FileNotFoundError
        It is missing.
    ValueError
        It is not JSON, or has no hashes.

    Notes
    -----
    Time and memory O(file). Source: ours.

    Examples
    --------
    >>> from importlib.resources import files
    >>> read_manifest(files("refattn.testing") / "data")["arrays_sha256"] == load_real_heads().sha256
    True
    """
    try:
        with _opened(folder, MANIFEST_FILE) as file:
            manifest: dict[str, Any] = read_json(file)
        if not all(isinstance(manifest[key], str) for key in ("sha256", "arrays_sha256")):
            raise TypeError("a hash is not a string")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{MANIFEST_FILE}: cannot be read ({error!r}); a JSON object with 'sha256' and 'arrays_sha256' was wanted"
        ) from error
    return manifest


def _opened(folder: Traversable, name: str) -> IO[bytes]:
    try:
        return (folder / name).open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: missing from {folder}; reinstall refattn") from error
