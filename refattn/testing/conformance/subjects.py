"""What is checked, put together from what a caller says of it (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from refattn._validation import as_count, as_flag, as_option, as_real
from refattn.testing.conformance.adapters import Adapter, Caller
from refattn.testing.conformance.arrays import jax_vjp, torch_autograd
from refattn.testing.conformance.isolation import Isolated
from refattn.testing.conformance.judge import FACTOR
from refattn.testing.conformance.operation import Operation
from refattn.testing.conformance.precision import PRECISIONS
from refattn.testing.conformance.precision import precision as precision_named
from refattn.testing.conformance.takes import Takes
from refattn.testing.conformance.trial import CLAIMS, EMPTY_ROWS, Subject

AUTOMATIC = {"torch": torch_autograd, "jax": jax_vjp}


@dataclass(frozen=True)
class Said:
    """What a caller says of a function; the options of `check_attention` that do not choose cases."""

    backward: Callable[..., Any] | str | None = None
    adapter: str | Adapter = "(B, H, N, D)"
    arrays: str = "numpy"
    device: str | None = None
    dtype: str = "float32"
    precision: str | None = None
    accumulate: str = "float32"
    factor: float = FACTOR
    strict: bool = False
    empty_rows: str = "zeros"
    names: Mapping[str, str] | None = None
    returns: str = "out"
    claims: str | Iterable[str] = ()
    isolate: bool = False
    timeout: float | None = None


@contextmanager
def subject_of(function: Callable[..., Any], operation: Operation, takes: Takes, said: Said) -> Iterator[Subject]:
    """Yield the function as it is checked, or raise naming what is wrong; its child process is ended at the end."""
    backward = said.backward
    if not callable(function):
        raise TypeError(f"function: {type(function).__name__} came, a callable was wanted")
    if backward == "autograd":
        backward = AUTOMATIC[as_option("arrays with backward='autograd'", said.arrays, AUTOMATIC)](function)
    if isinstance(backward, str) or not (backward is None or callable(backward)):
        raise TypeError(f"backward: {backward!r} came, a callable, 'autograd' or None was wanted")
    if takes.dtypes and said.dtype not in takes.dtypes:
        raise ValueError(f"dtype: {said.dtype} came, which is not among the dtypes of takes: {', '.join(takes.dtypes)}")
    gradients = backward if operation.differentiable else None
    caller = Caller(said.adapter, said.arrays, said.dtype, operation.axes, _returns(said.returns), said.device)
    call: Caller | Isolated = caller
    if as_flag("isolate", said.isolate) or said.timeout is not None:
        seconds = None if said.timeout is None else as_real("timeout", said.timeout, positive=True)
        functions = {"forward": function} | ({} if gradients is None else {"backward": gradients})
        call = Isolated(caller, functions, seconds)
    subject = Subject(
        function,
        gradients,
        operation,
        call,
        PRECISIONS[as_option("dtype", said.dtype, PRECISIONS)],
        precision_named(said.dtype if said.precision is None else said.precision, said.accumulate),
        as_real("factor", said.factor, least=1.0),
        as_option("empty_rows", said.empty_rows, EMPTY_ROWS),
        as_flag("strict", said.strict),
        _claims(said.claims),
        _names(said.names, operation),
    )
    try:
        yield subject
    finally:
        if isinstance(call, Isolated):
            call.child.close()


def _returns(given: str) -> tuple[str, ...]:
    """Return the names of what a function returns."""
    return tuple(as_option("returns", given, ("out", "out, lse")).split(", "))


def _claims(given: str | Iterable[str]) -> frozenset[str]:
    found = [given] if isinstance(given, str) else list(given)
    return frozenset(as_option("claims", one, CLAIMS) for one in found)


def _names(given: Mapping[str, str] | None, operation: Operation) -> dict[str, str]:
    """Return the function's own names of options of the operation."""
    known = [*operation.cases[0].build(1, 0).options, *operation.more_options]
    for name, theirs in dict(given or {}).items():
        as_option("names", name, known)
        if not isinstance(theirs, str):
            raise TypeError(f"names: {theirs!r} came for {name}, the name of a parameter was wanted")
    return dict(given or {})


def seeds_of(given: int | Iterable[int]) -> list[int]:
    """Return the seeds given, at least one, none of them twice."""
    found = [as_count("seeds", seed, least=0) for seed in (given if isinstance(given, Iterable) else [given])]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds: {found} came, at least one seed, and each once, was wanted")
    return found
