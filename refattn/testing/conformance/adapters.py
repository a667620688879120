"""Between the arrays of a check and those of the function under check: layout and library (ours)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.arrays import require_library, to_library, to_numpy

Result = tuple[NDArray[Any], str]
"""An array and the name of the dtype it came in."""


@dataclass(frozen=True)
class Adapter:
    """How arrays go to a function and come back, where a layout alone does not say it.

    Parameters
    ----------
    to_theirs : callable
        ``to_theirs(array, name)`` turns an array with the axes (B, H, N, D), scores (B, H, N), into what the function
        takes; `name` is that of the input, or ``"dout"``.
    to_ours : callable
        ``to_ours(result, name)`` turns the output, named ``"out"``, or the gradient of the input `name`, back.

    Notes
    -----
    Called once for every array: O(1) beyond the two functions. Source: ours.

    Examples
    --------
    For a function with one axis of heads and no batch, called on batches of one only:

    >>> adapter = Adapter(lambda array, name: array[0], lambda result, name: result[None])
    >>> adapter.to_theirs(np.ones((1, 2, 3, 4)), "q").shape
    (2, 3, 4)
    """

    to_theirs: Callable[[Any, str], Any]
    to_ours: Callable[[Any, str], Any]


def parse_layout(layout: str) -> str:
    """Return a layout such as ``"(B, N, H, D)"`` as its letters.

    >>> parse_layout("(B, N, H, D)")
    'BNHD'
    """
    letters = "".join(x for x in layout.upper() if x.isalpha())
    if len(set(letters)) != len(letters) or not set("ND") <= set(letters) <= set("BHND"):
        raise ValueError(
            f"adapter: layout {layout!r} came; (B, H, N, D), (B, N, H, D), (N, D) or another order of N, D and perhaps"
            " B and H was wanted"
        )
    return letters


class Caller:
    """Calls a function, or its backward, on the arrays of a problem; `axes` are the letters of those of every input.

    A layout without B or H means one call for every batch or head.
    """

    def __init__(self, adapter: str | Adapter, arrays: str, dtype: str, axes: Mapping[str, str]) -> None:
        self.adapter = adapter if isinstance(adapter, Adapter) else None
        require_library(arrays, dtype)
        self.arrays, self.dtype, self.axes = arrays, dtype, axes
        with_layout = isinstance(adapter, str) and "D" in axes["out"]
        self.layout = parse_layout(adapter) if isinstance(adapter, str) and with_layout else "".join(axes["out"])
        self.looped = [x for x in "BH" if x in axes["out"] and x not in self.layout]

    def __call__(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, FloatArray],
        options: Mapping[str, Any],
        results: tuple[str, ...],
    ) -> list[Result]:
        """Return the results; `results` names for each the input whose axes it has, or ``"out"``."""
        given = {
            x: to_library(value, self.arrays, value.dtype.name) if isinstance(value, np.ndarray) else value
            for x, value in options.items()
        }
        if not self.looped:
            return self._once(function, arrays, given, results)
        batches, heads = arrays["q"].shape[:2]
        kv_heads = arrays["k"].shape[1]
        sums: list[NDArray[Any]] = []
        for b in range(batches):
            for h in range(heads) if "H" in self.looped else [None]:
                spots = {
                    x: (slice(b, b + 1), slice(None) if h is None else _head(h, heads, a.shape[1]))
                    for x, a in arrays.items()
                }
                found = self._once(function, {x: a[spots[x]] for x, a in arrays.items()}, given, results)
                if not sums:
                    lead = {x: (batches, heads if x in ("out", "q") else kv_heads) for x in results}
                    sums = [
                        np.zeros((*lead[x], *a.shape[2:]), a.dtype) for (a, _), x in zip(found, results, strict=True)
                    ]
                for total, (array, _), name in zip(sums, found, results, strict=True):
                    total[spots["q" if name == "out" else name]] += array
        return [(total, dtype) for total, (_, dtype) in zip(sums, found, strict=True)]

    def _once(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, FloatArray],
        options: Mapping[str, Any],
        results: tuple[str, ...],
    ) -> list[Result]:
        theirs = [self._there(array, name) for name, array in arrays.items()]
        came = function(*theirs, **options)
        several = list(came) if isinstance(came, (tuple, list)) else [came]
        if len(several) != len(results):
            raise ValueError(f"{len(several)} results came, {len(results)} ({', '.join(results)}) were wanted")
        return [self._back(one, name) for one, name in zip(several, results, strict=True)]

    def _there(self, array: FloatArray, name: str) -> Any:
        if self.adapter is not None:
            return self.adapter.to_theirs(to_library(array, self.arrays, self.dtype), name)
        own, wanted = self._orders(name)
        squeezed = array.squeeze(tuple(own.index(x) for x in self.looped))
        kept = "".join(x for x in own if x in wanted)
        return to_library(squeezed.transpose([kept.index(x) for x in wanted]), self.arrays, self.dtype)

    def _back(self, result: Any, name: str) -> Result:
        if self.adapter is not None:
            return to_numpy(self.adapter.to_ours(result, name), name)
        array, dtype = to_numpy(result, name)
        own, wanted = self._orders(name)
        if array.ndim != len(wanted):
            raise ValueError(f"{name}: shape {array.shape} came, axes ({', '.join(wanted)}) were wanted")
        kept = "".join(x for x in own if x in wanted)
        turned = array.transpose([wanted.index(x) for x in kept])
        return np.expand_dims(turned, tuple(own.index(x) for x in self.looped)), dtype

    def _orders(self, name: str) -> tuple[str, str]:
        """Letters of the axes as the check has them, and as the function wants them."""
        own = self.axes["out" if name == "dout" else name]
        return own, "".join(x for x in self.layout if x in own)


def _head(head: int, heads: int, of: int) -> slice:
    """The head of an array with `of` heads that query head `head` of `heads` meets."""
    place = head * of // heads
    return slice(place, place + 1)


def accepted_options(
    function: Callable[..., Any], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options a function can be called with, without those it does not take and does not need.

    One that it does not take, and that is not the default, raises ``NotImplementedError`` naming it.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled, with no signature to ask for
        return dict(options)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(options)
    taken = {}
    for name, value in options.items():
        default = defaults.get(name)
        if name in parameters:
            taken[name] = value
        elif name not in defaults or (value is not default and (isinstance(value, np.ndarray) or value != default)):
            raise NotImplementedError(f"the function takes no {name}")
    return taken
