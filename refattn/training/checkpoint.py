"""Checkpoints: parameters, moments and the step of a training, in one file, whole or not at all (ours).

A safetensors file of ``parameters/NAME``, ``mean/NAME`` and ``square/NAME``; its header holds, as JSON, the step, what
the training is of, and a digest of all arrays. It takes the place of the last one in one step, so that a process
killed at any moment leaves a whole one. What is read goes into the training only after all of it was looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._files import write_whole
from refattn._json import parsed
from refattn._needs import missing
from refattn._validation import FloatArray
from refattn.models.safetensors_file import read_safetensors
from refattn.training.adamw import AdamW

_FORMAT = "refattn-checkpoint/1"
_KEY = "refattn"
"""Of the header's metadata; the only one."""


class OtherCheckpointError(ValueError):
    """A checkpoint of another training, which may be a good one.

    Notes
    -----
    The message has the first thing that differs. Source: ours.

    Examples
    --------
    >>> issubclass(OtherCheckpointError, ValueError)
    True
    """


def write_checkpoint(
    path: str | os.PathLike[str], parameters: Mapping[str, FloatArray], optimizer: AdamW, about: Mapping[str, Any]
) -> None:
    """Write where a training stands.

    Parameters
    ----------
    path : path
        The file; an older one stays until the new one is complete.
    parameters : mapping from str to ndarray
        What is trained, in any shapes, float32 or float64.
    optimizer : AdamW
        Its moments and steps.
    about : mapping from str
        What the training is of, in what JSON has: `read_checkpoint` wants the same.

    Raises
    ------
    ModuleNotFoundError
        The ``safetensors`` library is not installed.
    OSError
        The file cannot be written.

    Notes
    -----
    Time and memory O(parameters): the content is held once more. Source: ours.

    Examples
    --------
    `read_checkpoint` shows it.

    >>> _FORMAT
    'refattn-checkpoint/1'
    """
    save = _library().save
    arrays = _arrays(parameters, optimizer)
    header = {"format": _FORMAT, "steps": optimizer.steps, "about": dict(about), "digest": digest_of(arrays)}
    write_whole(path, save(arrays, metadata={_KEY: json.dumps(header)}))


def read_checkpoint(
    path: str | os.PathLike[str], parameters: Mapping[str, FloatArray], optimizer: AdamW, about: Mapping[str, Any]
) -> int:
    """Put a training where a checkpoint left it; if the checkpoint is refused, nothing has been changed.

    Parameters
    ----------
    path : path
        From `write_checkpoint`.
    parameters, optimizer : mapping from str to ndarray, AdamW
        Of the shapes and dtypes in the checkpoint; written to.
    about : mapping from str
        As for `write_checkpoint`.

    Returns
    -------
    int
        Steps taken.

    Raises
    ------
    ModuleNotFoundError
        The ``safetensors`` library is not installed.
    FileNotFoundError
        There is no such file.
    OtherCheckpointError
        It is of a training of something else; what differs is named.
    ValueError
        It is truncated or damaged, or no checkpoint.

    Notes
    -----
    Time and memory O(parameters). Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> from importlib.util import find_spec
    >>> path = Path(tempfile.mkdtemp(), "checkpoint.safetensors")
    >>> x = {"x": np.arange(3.0)}
    >>> y, optimizer = {"x": np.zeros(3)}, AdamW(x)
    >>> if find_spec("safetensors"):
    ...     write_checkpoint(path, x, optimizer, {"width": 3})
    ...     _ = read_checkpoint(path, y, optimizer, {"width": 3})
    >>> y["x"].tolist() if find_spec("safetensors") else [0.0, 1.0, 2.0]
    [0.0, 1.0, 2.0]
    """
    found = read_safetensors(path)
    header = _header(Path(path))
    if difference := _difference(header["about"], dict(about)):
        raise OtherCheckpointError(f"{path}: a checkpoint of another training: {difference}")
    wanted = _arrays(parameters, optimizer)
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted or name not in found:
            where = "came and is not in the model" if name not in wanted else "is missing"
            raise OtherCheckpointError(f"{path}: a checkpoint of another model: {name} {where}")
        came, mine = found[name], wanted[name]
        if came.shape != mine.shape or came.dtype != mine.dtype:
            raise OtherCheckpointError(
                f"{path}: a checkpoint of another model: {name} of shape {came.shape} and dtype {came.dtype} came,"
                f" {mine.shape} and {mine.dtype} was wanted"
            )
    if digest_of(found) != header["digest"]:
        raise ValueError(f"{path}: its arrays are not those that were written: damaged")
    for name, array in wanted.items():
        np.copyto(array, found[name])
    optimizer.steps = header["steps"]
    return optimizer.steps


def _arrays(parameters: Mapping[str, FloatArray], optimizer: AdamW) -> dict[str, NDArray[Any]]:
    """Return all arrays of a checkpoint, by their names in it."""
    kinds = {"parameters": parameters, "mean": optimizer.mean, "square": optimizer.square}
    return {f"{kind}/{name}": array for kind, arrays in kinds.items() for name, array in arrays.items()}


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a digest of arrays with their names, dtypes and shapes."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        whole.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        whole.update(np.ascontiguousarray(arrays[name]).data)
    return whole.hexdigest()


def _header(path: Path) -> dict[str, Any]:
    """Return what the header says about the training, checked."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        header = parsed(metadata[_KEY].encode("utf-8"))
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']!r} came, {_FORMAT!r} was wanted")
        if type(header["steps"]) is not int or header["steps"] < 0:
            raise ValueError(f"steps: {header['steps']!r} came, a number of steps was wanted")
        if not isinstance(header["about"], dict) or not isinstance(header["digest"], str):
            raise ValueError("about or digest is of another kind than was wanted")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of a training ({error!r})") from None
    return dict(header)


def _difference(found: Any, wanted: Any, where: str = "") -> str:
    """Return where two descriptions differ first, in the order of names, or nothing."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs: Iterator[tuple[Any, ...]] = ((found.get(k), wanted.get(k), k) for k in sorted(found.keys() | wanted))
        told = (_difference(came, want, f"{where}.{key}" if where else key) for came, want, key in pairs)
        return next(filter(None, told), "")
    return "" if found == wanted else f"{where}: {found!r} came, {wanted!r} was wanted"


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise missing("a checkpoint", "safetensors") from error
    return safetensors.numpy
