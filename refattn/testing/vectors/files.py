"""The files of the reference vectors: plain arrays in uncompressed zip archives, and a JSON manifest (ours).

An archive holds ``case.name.npy`` for every array of every case, stored without compression, in the order of the
manifest, with fixed times; the arrays are little-endian float64, int64 or uint8, row by row, behind a version 1.0 NPY
header. The format is described for readers in other languages in ``docs/how-to/reference-vectors.md``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from refattn._files import sha256_of
from refattn._json import read_json
from refattn._npz import arrays_in

MANIFEST_FILE = "manifest.json"
SCHEMA = "refattn-vectors/1"
_TIME = (1980, 1, 1, 0, 0, 0)
_DTYPES = {"<f8", "<i8", "|u1"}


@dataclass(frozen=True)
class VectorCase:
    """One case of one operation.

    Attributes
    ----------
    operation, name, description : str
        Which operation, which case, and what is special about it.
    options : dict
        Scalars the operation takes.
    arrays : dict of str to ndarray, shapes and dtypes as in the manifest
        Inputs and results, by the names the manifest lists as such.
    inputs, results : tuple of str
        Which arrays are which.

    Examples
    --------
    >>> from refattn.testing import load_vectors
    >>> case = load_vectors()[0]
    >>> sorted(case.arrays) == sorted({*case.inputs, *case.results})
    True
    """

    operation: str
    name: str
    description: str
    options: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    inputs: tuple[str, ...]
    results: tuple[str, ...]


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an array in NPY version 1.0, the same bytes from every version of NumPy.

    >>> np.load(io.BytesIO(npy_bytes(np.arange(3.0)))).tolist()
    [0.0, 1.0, 2.0]
    """
    kept = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    if kept.dtype.str not in _DTYPES:
        raise TypeError(f"array: dtype {array.dtype} came, one of {', '.join(sorted(_DTYPES))} was wanted")
    header = f"{{'descr': '{kept.dtype.str}', 'fortran_order': False, 'shape': {kept.shape}, }}"
    padded = header + " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii") + kept.tobytes()


def archive_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an uncompressed archive of the arrays, the same bytes every time."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, npy_bytes(array))
    return stream.getvalue()


def vectors_folder() -> Traversable:
    """Return the folder of the shipped vectors."""
    return files("refattn.testing") / "data" / "vectors"


def load_manifest(folder: Traversable | None = None) -> dict[str, Any]:
    """Return the manifest: what every archive holds, its hash, and how it was computed.

    Parameters
    ----------
    folder : Traversable, optional
        Where it lies (a `pathlib.Path`, say); by default that of the shipped vectors.

    Returns
    -------
    dict
        ``files`` maps every archive to its ``sha256`` and ``cases``.

    Raises
    ------
    FileNotFoundError
        It is missing.
    ValueError
        It is not a manifest of reference vectors.

    Notes
    -----
    Time and memory O(file). Source: ours.

    Examples
    --------
    >>> sorted(load_manifest()["files"])[0]
    'conv.npz'
    """
    place = vectors_folder() if folder is None else folder
    try:
        with (place / MANIFEST_FILE).open("rb") as file:
            manifest: dict[str, Any] = read_json(file)
        if not isinstance(manifest, dict) or manifest["schema"] != SCHEMA or not isinstance(manifest["files"], dict):
            raise ValueError(f"schema {manifest['schema']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST_FILE}: cannot be read ({error!r}); {SCHEMA!r} was wanted") from error
    return manifest


def load_vectors(folder: Traversable | None = None) -> tuple[VectorCase, ...]:
    """Return every case, the archives verified against the manifest's hashes.

    Parameters
    ----------
    folder : optional
        As for `load_manifest`.

    Returns
    -------
    tuple of VectorCase
        In the manifest's order.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is not the one the manifest describes. Nothing is ever unpickled.

    Notes
    -----
    Time and memory O(files). Source: ours.

    Examples
    --------
    >>> case = next(case for case in load_vectors() if case.operation == "dense")
    >>> case.inputs, case.arrays["out"].dtype
    (('q', 'k', 'v', 'dout'), dtype('float64'))
    """
    place = vectors_folder() if folder is None else folder
    manifest = load_manifest(place)
    cases: list[VectorCase] = []
    for name, described in manifest["files"].items():
        try:
            with (place / name).open("rb") as file:
                cases += _cases(name, file, described)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{MANIFEST_FILE}: {name} is not described as it should be ({error!r})") from error
    return tuple(cases)


def _cases(name: str, file: IO[bytes], described: Mapping[str, Any]) -> list[VectorCase]:
    """Return the cases of one archive, or raise."""
    found = sha256_of(file)
    if found != described["sha256"]:
        raise ValueError(f"{name}: SHA-256 {found} came, {described['sha256']} was wanted; truncated or altered")
    names = [f"{case['name']}.{array}" for case in described["cases"] for array in _names(case)]
    stored = arrays_in(file, names, name)
    cases = []
    for case in described["cases"]:
        given = {name: case[name] for name in ("operation", "name", "description", "options")}
        arrays = {array: stored[f"{case['name']}.{array}"] for array in _names(case)}
        cases.append(VectorCase(**given, arrays=arrays, inputs=tuple(case["inputs"]), results=tuple(case["results"])))
    return cases


def _names(case: Mapping[str, Any]) -> tuple[str, ...]:
    return (*case["inputs"], *case["results"])
