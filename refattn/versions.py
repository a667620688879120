"""What a result was computed with: versions, FFT, threads, BLAS, machine (ours)."""

from __future__ import annotations

import json as json_module
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from refattn._sources import sources
from refattn._threads import thread_count
from refattn._version import __version__

_PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "llvmlite",
    "pyfftw",
    "threadpoolctl",
    "gguf",
    "tokenizers",
    "safetensors",
    "torch",
    "onnx",
)
_BLAS_FACTS = ("internal_api", "version", "num_threads", "threading_layer", "architecture")
_VARIABLES = (
    "REFATTN_FFT",
    "REFATTN_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMBA_THREADING_LAYER",
    "NUMBA_DISABLE_JIT",
    "NUMBA_CPU_NAME",
    "PYTHONHASHSEED",
)


def environment() -> dict[str, Any]:
    """Describe the environment as plain data.

    Returns
    -------
    dict
        ``refattn`` and ``python`` (versions), ``sources`` (commit, where the package is in a checkout; whether its
        files differ from that; a digest of them), ``packages`` (name to version, None where not installed),
        ``threads``, ``fft``, ``numba``, ``blas`` (one entry per library loaded, with its kernel), ``machine``,
        ``variables`` (those set, of the ones that matter here). Ready for ``json.dumps``.

    Examples
    --------
    >>> sorted(environment())
    ['blas', 'fft', 'machine', 'numba', 'packages', 'python', 'refattn', 'sources', 'threads', 'variables']
    """
    import numba
    from threadpoolctl import threadpool_info

    from refattn import _fft

    return {
        "refattn": __version__,
        "python": sys.version.split()[0],
        "sources": sources(),
        "packages": {name: _installed(name) for name in _PACKAGES},
        "threads": thread_count(),
        "fft": {"backend": _fft.backend(), "fftw_version": _fft.fftw_version()},
        "numba": {
            "threading_layer": str(numba.config.THREADING_LAYER),
            "threads": int(numba.config.NUMBA_NUM_THREADS),
            "jit_disabled": bool(numba.config.DISABLE_JIT),
        },
        "blas": sorted(  # they come in the order in which they were loaded
            ({key: pool[key] for key in _BLAS_FACTS if pool.get(key) is not None} for pool in threadpool_info()),
            key=str,
        ),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": _memory(),
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def show_versions(json: bool = False) -> None:
    """Print what a result depends on: to be pasted into a report or an issue.

    Parameters
    ----------
    json : bool, optional
        Print one JSON object instead of text.

    Notes
    -----
    Imports numba and the FFT library, compiles nothing; O(1). Source: ours.

    Examples
    --------
    >>> from refattn import show_versions
    >>> show_versions()  # doctest: +ELLIPSIS
    refattn ...
    """
    facts = {**environment(), "compiled_loops": _compiled_loops()}
    print(json_module.dumps(facts, indent=2) if json else "\n".join(_lines("", facts)))


def _compiled_loops() -> dict[str, Any]:
    """Where compiled loops are kept, and how large that is: nothing to note with results."""
    from refattn import _compiled_cache

    try:
        found = _compiled_cache.kept()
    except OSError as error:
        return {"folder": str(error)}
    return {"folder": str(found.folder or "off"), "loops": found.loops, "bytes": found.size}


def _lines(prefix: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _lines(f"{prefix}{key} ", inner)]
    if isinstance(value, list):
        return [line for place, inner in enumerate(value) for line in _lines(f"{prefix}{place} ", inner)]
    return [f"{prefix}{'not installed' if value is None else value}"]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _memory() -> float | None:
    """The machine's memory in GiB, to a tenth, where the system says it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
