"""FFTs along the last axis: the only place that knows FFTW, and scipy.fft, its fallback.

`REFATTN_FFT=scipy` in the environment chooses the fallback; without pyFFTW it is used as well.

A *transform* is a plan with its own input and output buffers. `borrowed` lends one to a thread: nobody else has it
until it is given back, so no FFTW object ever runs in two threads at once. What is given back is kept for the next one
who asks for the same kind and shape, up to a number of transforms and a number of bytes, the least recently used going
first. FFTW's planner, and its destructor, run under one lock, which a fork waits for.

FFTW follows what measuring has taught it, its *wisdom*, even where it is asked for an estimated plan, whose last bits
would then depend on what was planned before. It therefore has that wisdom only while it measures; `_measuring` keeps it
for the rest of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._files import write_whole
from refattn._json import read_json
from refattn._validation import FloatArray, as_option

ComplexArray = NDArray[np.complexfloating[Any, Any]]

KINDS = ("rfft", "irfft", "fft", "ifft")
EFFORTS = ("estimate", "measure", "patient")
KEPT_BYTES = 64 << 20
"""Most bytes of idle transforms that are kept; larger ones are dropped when they are given back."""
KEPT_TRANSFORMS = 128
"""Most idle transforms that are kept: a call borrows about ten, and FFTW's plan takes 5 to 17 kB beside its buffers."""

_planner = threading.Lock()
_effort = "estimate"
_wisdom: tuple[bytes, ...] | None = None
"""What measuring has taught, as pyFFTW exports it; changed under the planner's lock."""


@cache
def _pyfftw() -> Any:
    """Return the module ``pyfftw``, or None where it is not installed."""
    try:
        import pyfftw
    except ImportError:
        return None
    return pyfftw


def backend() -> str:
    """Return ``"pyfftw"`` or ``"scipy"``, whichever transforms are done with."""
    asked = as_option("REFATTN_FFT", os.environ.get("REFATTN_FFT") or "pyfftw", ("pyfftw", "scipy"))
    if os.environ.get("REFATTN_FFT") == "pyfftw" and _pyfftw() is None:
        raise ImportError("REFATTN_FFT: 'pyfftw' came, but pyFFTW is not installed; 'scipy' or no value was wanted")
    return "scipy" if asked == "scipy" or _pyfftw() is None else "pyfftw"


def fftw_version() -> str | None:
    """Return the version of the FFTW library, or None where it is not used."""
    return str(_pyfftw().fftw_version) if backend() == "pyfftw" else None


def fast_length(least: int) -> int:
    """Return the smallest length of at least `least` that real transforms are fast for."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(least, real=True))


@contextmanager
def _estimating() -> Iterator[Any]:
    """Lend ``pyfftw``, with the planner's lock held."""
    with _planner:
        yield _pyfftw()


@contextmanager
def _measuring() -> Iterator[Any]:
    """Lend ``pyfftw`` with what measuring has taught so far; what it learns inside is kept, and taken from it after."""
    global _wisdom
    with _estimating() as pyfftw:
        before = pyfftw.export_wisdom()
        if _wisdom is not None:
            pyfftw.import_wisdom(_wisdom)
        try:
            yield pyfftw
        finally:
            _wisdom = pyfftw.export_wisdom()
            pyfftw.forget_wisdom()
            pyfftw.import_wisdom(before)


class Transform:
    """One planned transform: write to `input`, call `execute`, read from `output`; both are aligned for FFTW.

    ``"irfft"`` may overwrite its input, the other kinds leave it. Inverse transforms are not scaled: they give `length`
    times the inverse, as FFTW does.
    """

    input: NDArray[Any]
    output: NDArray[Any]
    execute: Callable[[], Any]

    def __init__(self, kind: str, rows: int, length: int, dtype: np.dtype[Any], engine: str, effort: str) -> None:
        cplx = np.result_type(dtype, np.complex64)
        half = length // 2 + 1
        shapes = {
            "rfft": ((rows, length), dtype, (rows, half), cplx),
            "irfft": ((rows, half), cplx, (rows, length), dtype),
            "fft": ((rows, length), cplx, (rows, length), cplx),
            "ifft": ((rows, length), cplx, (rows, length), cplx),
        }
        in_shape, in_dtype, out_shape, out_dtype = shapes[kind]
        if engine == "pyfftw":
            zeros = _pyfftw().zeros_aligned
            self.input, self.output = zeros(in_shape, in_dtype), zeros(out_shape, out_dtype)
            direction = "FFTW_BACKWARD" if kind.startswith("i") else "FFTW_FORWARD"
            flags = (f"FFTW_{effort.upper()}", *(("FFTW_DESTROY_INPUT",) if kind == "irfft" else ()))
            with _estimating() if effort == "estimate" else _measuring() as pyfftw:
                plan = pyfftw.FFTW(self.input, self.output, axes=(1,), direction=direction, flags=flags, threads=1)
                self.input[...] = 0  # measuring has written to it
            self.execute = plan.execute
        else:
            self.input, self.output = np.zeros(in_shape, in_dtype), np.zeros(out_shape, out_dtype)
            self.execute = self._by_scipy(kind, length)
        self.nbytes = int(self.input.nbytes + self.output.nbytes)

    def release(self) -> None:
        """Free the plan, under the planner's lock: FFTW's destructor is not safe in two threads."""
        with _planner:
            del self.execute

    def _by_scipy(self, kind: str, length: int) -> Callable[[], Any]:
        from scipy import fft

        function = getattr(fft, kind)
        norm = "forward" if kind.startswith("i") else "backward"

        def execute() -> None:
            self.output[...] = function(self.input, length, axis=1, norm=norm)

        return execute


class _Shelf:
    """Idle transforms by key, least recently used first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: OrderedDict[tuple[Any, ...], list[Transform]] = OrderedDict()
        self.count = self.nbytes = 0

    def take(self, key: tuple[Any, ...]) -> Transform | None:
        with self.lock:
            waiting = self.idle.get(key)
            if not waiting:
                return None
            transform = waiting.pop()
            self.count -= 1
            self.nbytes -= transform.nbytes
            if not waiting:
                del self.idle[key]
            return transform

    def put(self, key: tuple[Any, ...], transform: Transform) -> None:
        dropped = []
        with self.lock:
            self.idle.setdefault(key, []).append(transform)
            self.idle.move_to_end(key)
            self.count += 1
            self.nbytes += transform.nbytes
            while self.count > KEPT_TRANSFORMS or self.nbytes > KEPT_BYTES:
                oldest = next(iter(self.idle))
                dropped.append(self.idle[oldest].pop())
                self.count -= 1
                self.nbytes -= dropped[-1].nbytes
                if not self.idle[oldest]:
                    del self.idle[oldest]
        for one in dropped:
            one.release()


_shelf = _Shelf()


@contextmanager
def borrowed(kind: str, rows: int, length: int, dtype: Any) -> Iterator[Transform]:
    """Lend a transform of `rows` rows to the caller alone; its input holds what the last user left there.

    Real to complex ("rfft"), complex to real ("irfft"), complex to complex ("fft", "ifft"), of float32 or float64, not
    scaled.
    """
    key = (kind, rows, length, np.dtype(dtype), backend(), _effort)
    transform = _shelf.take(key) or Transform(*key)
    try:
        yield transform
    finally:
        _shelf.put(key, transform)


def rfft(x: FloatArray, length: int) -> ComplexArray:
    """Transform of `x`, zero-padded to `length`, along its last axis; shape ``(…, length//2 + 1)``."""
    rows = int(np.prod(x.shape[:-1]))
    with borrowed("rfft", rows, length, x.dtype) as transform:
        taken = min(x.shape[-1], length)
        transform.input[:, :taken] = x.reshape(rows, -1)[:, :taken]
        transform.input[:, taken:] = 0
        transform.execute()
        return transform.output.reshape(*x.shape[:-1], -1).copy()


def irfft(x_hat: ComplexArray, length: int) -> FloatArray:
    """Inverse of `rfft`: the real array of the given `length`."""
    rows = int(np.prod(x_hat.shape[:-1]))
    with borrowed("irfft", rows, length, x_hat.real.dtype) as transform:
        transform.input[...] = x_hat.reshape(rows, -1)
        transform.execute()
        return np.asarray(transform.output / transform.output.dtype.type(length)).reshape(*x_hat.shape[:-1], -1)


def set_planner_effort(effort: str) -> None:
    """Choose how hard FFTW looks for a plan, for shapes planned from now on.

    Parameters
    ----------
    effort : {"estimate", "measure", "patient"}
        ``"estimate"``, the default, takes microseconds and always finds the same plan, whatever was measured before by
        this library (wisdom that a program gives FFTW by itself is followed). The others try plans out, for seconds,
        and may find another plan, with other last bits, the next time; `export_wisdom` keeps what they found.

    Raises
    ------
    ValueError
        Unknown effort.

    Notes
    -----
    O(1): the next plan takes the time. Source: ours, after FFTW's planner flags.

    Examples
    --------
    >>> from refattn.tuning import set_planner_effort
    >>> set_planner_effort("estimate")
    """
    global _effort
    _effort = as_option("effort", effort, EFFORTS)


def export_wisdom(path: str | os.PathLike[str]) -> None:
    """Write what FFTW has learnt by measuring to a JSON file, whole or not at all.

    Parameters
    ----------
    path : path
        Of the file.

    Raises
    ------
    RuntimeError
        FFTW is not in use.
    OSError
        The file cannot be written; an older one stays as it was.

    Notes
    -----
    Time O(plans measured). Source: ours, after FFTW's wisdom.

    Examples
    --------
    >>> from contextlib import suppress
    >>> from tempfile import TemporaryDirectory
    >>> from refattn.tuning import export_wisdom, import_wisdom
    >>> with suppress(RuntimeError), TemporaryDirectory() as folder:  # FFTW may not be in use
    ...     export_wisdom(f"{folder}/wisdom.json")
    ...     import_wisdom(f"{folder}/wisdom.json")
    """
    _require_fftw()
    with _measuring() as pyfftw:
        parts = pyfftw.export_wisdom()
    write_whole(path, json.dumps({"fftw": [part.decode("ascii") for part in parts], "sha256": _digest(parts)}))


def import_wisdom(path: str | os.PathLike[str]) -> None:
    """Read what `export_wisdom` wrote; plans that are measured from now on use it.

    FFTW itself ends the process on some damaged wisdom: a digest in the file tells before it is asked.

    Parameters
    ----------
    path : path
        Of the file.

    Raises
    ------
    RuntimeError
        FFTW is not in use.
    ValueError
        The file holds no wisdom, or another library's.
    OSError
        The file cannot be read.

    Notes
    -----
    Time O(file). Source: ours, after FFTW's wisdom.

    Examples
    --------
    >>> from contextlib import suppress
    >>> from tempfile import TemporaryDirectory
    >>> from refattn.tuning import export_wisdom, import_wisdom
    >>> with suppress(RuntimeError), TemporaryDirectory() as folder:  # FFTW may not be in use
    ...     export_wisdom(f"{folder}/wisdom.json")
    ...     import_wisdom(f"{folder}/wisdom.json")
    """
    _require_fftw()
    try:
        with open(path, "rb") as file:
            saved = read_json(file)
        parts = tuple(part.encode("ascii") for part in saved["fftw"])
        if len(parts) != 3:
            raise ValueError("three precisions were wanted")
        if saved["sha256"] != _digest(parts):
            raise ValueError("it is damaged: its digest is another one")
        with _measuring() as pyfftw:
            accepted = pyfftw.import_wisdom(parts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as wisdom ({error}); a file of export_wisdom was wanted") from error
    if not any(accepted):
        raise ValueError(f"{path}: FFTW accepts none of it; wisdom of the same FFTW version was wanted")


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _require_fftw() -> None:
    if backend() != "pyfftw":
        raise RuntimeError("FFTW is not in use (REFATTN_FFT=scipy, or pyFFTW is missing): there is no wisdom")


def _renew_shelf() -> None:
    """In a forked child: another thread may have held the shelf's lock, or a transform, at the fork."""
    global _shelf
    _shelf = _Shelf()
    _planner.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_planner.acquire, after_in_parent=_planner.release, after_in_child=_renew_shelf)
