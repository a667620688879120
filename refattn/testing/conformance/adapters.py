"""Between the arrays of a check and those of the function under check: layout and library (ours)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.arrays import require_library, to_library, to_numpy
from refattn.testing.conformance.report import TAKES_NO

Result = tuple[str, NDArray[Any], str]
"""The name of a result, ``out`` or that of an input after ``d``; an array; and the name of the dtype it came in."""

KNOWN_NAMES = {
    "causal": ("is_causal",),
    "scale": ("sm_scale", "softmax_scale", "scaling"),
    "mask": ("attn_mask", "attention_mask"),
    "bias": ("attn_bias",),
    "softcap": ("logits_soft_cap", "logit_cap"),
    "window": ("window_size",),
    "sinks": ("sink", "s_aux"),
    "lengths": ("seqlens_k", "cache_seqlens", "kv_lens"),
    "keep": ("dropout_mask",),
    "dropout": ("dropout_p",),
    "block_table": ("block_tables", "page_table"),
}
"""What other libraries call the options."""

NOT_ASKED_FOR = {"dbias", "dsinks"}
"""Gradients that a backward may return after those of its inputs, or not."""

MEMORY = ("contiguous", "transposed", "rows", "columns")
"""How an array lies in memory: with the axes before the last two exchanged, as rows of wider ones, as every second
column of a wider one."""

GARBAGE = 333.0
"""What stands between the rows and columns of an array that is part of a wider one, and around an output buffer."""


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

    A layout without B or H means one call for every batch or head. After a call, `written` names what it was given
    and changed.
    """

    def __init__(
        self,
        adapter: str | Adapter,
        arrays: str,
        dtype: str,
        axes: Mapping[str, str],
        returns: tuple[str, ...] = ("out",),
        device: str | None = None,
    ) -> None:
        self.adapter = adapter if isinstance(adapter, Adapter) else None
        require_library(arrays, dtype, device)
        self.arrays, self.device, self.dtype, self.axes = arrays, device, dtype, axes
        with_layout = isinstance(adapter, str) and "D" in axes["out"]
        self.layout = parse_layout(adapter) if isinstance(adapter, str) and with_layout else "".join(axes["out"])
        self.looped = [x for x in "BH" if x in axes["out"] and x not in self.layout]
        self.returns = returns
        self.written: list[str] = []

    def __call__(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, FloatArray],
        options: Mapping[str, Any],
        results: tuple[str, ...],
        memory: str = "contiguous",
        buffer: str = "",
    ) -> list[Result]:
        """Return the results, which are named; `buffer` is the parameter by which an array for the output is given."""
        self.written = []
        shared = [x for x, value in options.items() if isinstance(value, np.ndarray) and x != "mask"]
        if self.looped and shared:
            raise UnavailableError(f"{shared[0]} is that of several heads or batches, each of which has its own call")
        if not self.looped:
            return self._once(function, arrays, options, results, memory, buffer)
        batches, heads = arrays["q"].shape[:2]
        kv_heads = arrays["k"].shape[1]
        sums: list[NDArray[Any]] = []
        for b in range(batches):
            for h in range(heads) if "H" in self.looped else [None]:
                spots = {
                    x: (slice(b, b + 1), slice(None) if h is None else _head(h, heads, a.shape[1]))
                    for x, a in arrays.items()
                }
                given = {x: _of_head(value, b, h) for x, value in options.items()}
                here = {x: a[spots[x]] for x, a in arrays.items()}
                found = self._once(function, here, given, results, memory, buffer)
                if not sums:
                    lead = {x: (batches, kv_heads if self._like(x) in ("k", "v") else heads) for x in results}
                    sums = [np.zeros((*lead[x], *a.shape[2:]), a.dtype) for x, a, _ in found]
                for total, (name, array, _) in zip(sums, found, strict=True):
                    like = self._like(name)
                    total[spots["q" if like == "out" else like]] += array
        return [(name, total, dtype) for total, (name, _, dtype) in zip(sums, found, strict=True)]

    def _once(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, FloatArray],
        options: Mapping[str, Any],
        results: tuple[str, ...],
        memory: str,
        buffer: str,
    ) -> list[Result]:
        theirs = {name: self._there(array, name, memory) for name, array in arrays.items()}
        given = {
            x: self._theirs(value, "" if value.dtype.kind == "f" else value.dtype.name)
            if isinstance(value, np.ndarray)
            else value
            for x, value in options.items()
        }
        watched = {x: a for x, a in (theirs | given).items() if not isinstance(a, (bool, int, float, str, type(None)))}
        before = {x: _copy(a) for x, a in watched.items()}
        around = None
        if buffer:
            around, given[buffer] = self._buffer(arrays)
        came = function(*theirs.values(), **given)
        for name, array in before.items():
            if array is not None and not np.array_equal(array, to_numpy(watched[name], name)[0], equal_nan=True):
                self.written.append(f"the input {name}")
        if around is not None:
            whole, guard = to_numpy(around, "out")[0], around.shape[0] // 4
            if (np.concatenate([whole[:guard], whole[-guard:]]) != GARBAGE).any():
                self.written.append("the memory around the output")
            came = given[buffer]
        several = list(came) if isinstance(came, (tuple, list)) else [came]
        if len(several) < len(results) and set(results[len(several) :]) <= NOT_ASKED_FOR:
            results = results[: len(several)]
        if len(several) != len(results):
            hint = "; say returns='out, lse' if they are these" if results == ("out",) and len(several) == 2 else ""
            raise WrongResultError(
                f"{len(several)} results came, {len(results)} ({', '.join(results)}) were wanted{hint}"
            )
        return [(name, *self._back(one, name)) for one, name in zip(several, results, strict=True)]

    def _buffer(self, arrays: Mapping[str, FloatArray]) -> tuple[Any, Any]:
        """An array of garbage, and the middle half of it as an output."""
        own, wanted = self._orders("out")
        lengths = dict(zip(own, (*arrays["q"].shape[:-1], arrays["v"].shape[-1]), strict=True))
        shape = [lengths[x] for x in wanted]
        size = int(np.prod(shape))
        guard = -(-size // 2)
        whole = self._theirs(np.full(2 * guard + 2 * guard, GARBAGE))
        return whole, whole[guard : guard + size].reshape(shape)

    def _there(self, array: FloatArray, name: str, memory: str) -> Any:
        if self.adapter is not None:
            return self.adapter.to_theirs(self._laid(array, memory), name)
        own, wanted = self._orders(name)
        squeezed = array.squeeze(tuple(own.index(x) for x in self.looped))
        kept = "".join(x for x in own if x in wanted)
        return self._laid(squeezed.transpose([kept.index(x) for x in wanted]), memory)

    def _theirs(self, array: NDArray[Any], dtype: str = "") -> Any:
        """An array of their library, of the dtype of the check where none is said."""
        return to_library(array, self.arrays, dtype or self.dtype, self.device)

    def _laid(self, array: FloatArray, memory: str) -> Any:
        """The array in their library, lying in memory as said."""
        if memory == "contiguous" or array.ndim < 2:
            return self._theirs(array)
        if self.arrays == "jax":
            raise UnavailableError("JAX's arrays have no strides")
        if memory == "transposed":
            axes = (-3, -2) if array.ndim > 2 else (-2, -1)
            return self._theirs(array.swapaxes(*axes)).swapaxes(*axes)
        garbage = np.full_like(array, GARBAGE)
        if memory == "rows":
            wide = np.concatenate([array, garbage], axis=-1)
            return self._theirs(wide)[..., : array.shape[-1]]
        pairs = np.stack([array, garbage], axis=-1).reshape(*array.shape[:-1], -1)
        return self._theirs(pairs)[..., ::2]

    def _back(self, result: Any, name: str) -> tuple[NDArray[Any], str]:
        if name in NOT_ASKED_FOR:
            return to_numpy(result, name)
        if self.adapter is not None:
            return to_numpy(self.adapter.to_ours(result, self._like(name)), name)
        array, dtype = to_numpy(result, name)
        own, wanted = self._orders(name)
        if array.ndim != len(wanted):
            raise WrongResultError(f"{name}: shape {array.shape} came, axes ({', '.join(wanted)}) were wanted")
        kept = "".join(x for x in own if x in wanted)
        turned = array.transpose([wanted.index(x) for x in kept])
        return np.expand_dims(turned, tuple(own.index(x) for x in self.looped)), dtype

    def _like(self, name: str) -> str:
        """The input or output whose axes an array has."""
        return name if name in self.axes else "out" if name[1:] not in self.axes else name[1:]

    def _orders(self, name: str) -> tuple[str, str]:
        """Letters of the axes as the check has them, and as the function wants them."""
        own = self.axes["out"].replace("D", "") if name == "lse" else self.axes[self._like(name)]
        return own, "".join(x for x in self.layout if x in own)


class UnavailableError(Exception):
    """The library has no arrays of the kind that a case needs."""


class WrongResultError(ValueError):
    """Another number of results came, or a result with other axes, than were wanted."""


def _copy(array: Any) -> NDArray[Any] | None:
    """A copy to compare with, or None of what is no array, as an adapter may hand over."""
    try:
        found = to_numpy(array, "input")[0]
    except (TypeError, ValueError):
        return None
    return None if found.dtype == object else found


def _of_head(value: Any, batch: int, head: int | None) -> Any:
    """An option with axes (B, H, n_q, n_k) for one batch, or for one head of it; B and H may be 1."""
    if not isinstance(value, np.ndarray) or value.ndim != 4:
        return value
    of_batch = value[batch if value.shape[0] > 1 else 0]
    return of_batch if head is None else of_batch[head if of_batch.shape[0] > 1 else 0]


def _head(head: int, heads: int, of: int) -> slice:
    """The head of an array with `of` heads that query head `head` of `heads` meets."""
    place = head * of // heads
    return slice(place, place + 1)


def accepted_options(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    named: Collection[str] = (),
) -> dict[str, Any]:
    """Return the options a function can be called with, by its own names, without those it neither takes nor needs.

    One that it does not take, and that is not the default, raises ``NotImplementedError`` naming it. Those of `named`
    it takes only where a parameter, or `names`, says so: ``**options`` is not enough.
    """
    theirs = dict(names or {})
    try:
        parameters = inspect.signature(function).parameters
        anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    except (TypeError, ValueError):  # compiled, with no signature to ask for
        parameters, anything = MappingProxyType({}), True
    for name in options:
        for known in KNOWN_NAMES.get(name, ()):
            if name not in parameters and known in parameters:
                theirs.setdefault(name, known)
    if anything:
        for name in options:
            if name in named and name not in theirs and name not in parameters:
                raise NotImplementedError(f"{TAKES_NO}{name}")
        return {theirs.get(name, name): value for name, value in options.items()}
    taken = {}
    for name, value in options.items():
        default = defaults.get(name)
        if theirs.get(name, name) in parameters:
            taken[theirs.get(name, name)] = value
        elif name not in defaults or (value is not default and (isinstance(value, np.ndarray) or value != default)):
            raise NotImplementedError(f"{TAKES_NO}{name}")
    return taken
