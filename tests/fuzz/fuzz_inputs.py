"""What the fuzzers call functions with: arguments that fit, of every kind of number; then none to two made hostile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

KINDS = (
    "normal", "normal", "normal", "small", "integers", "equal", "zeros", "one-hot",
    "1e4", "huge", "largest", "tiny", "subnormal", "magnitudes",
)  # fmt: skip
DTYPES = (np.float64, np.float64, np.float32)


@dataclass(frozen=True)
class Array:
    """An array argument that fits: its shape, and what kinds of numbers it may hold."""

    shape: tuple[int, ...]
    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True)
class Given:
    """An argument that fits and was made already: hostility may still reach it."""

    value: Any


@dataclass(frozen=True)
class Option:
    """Another argument that fits, from a strategy."""

    strategy: Any = field(default_factory=st.none)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], kind: str, dtype: Any) -> np.ndarray:
    """Return an array of numbers of one kind, finite in the dtype."""
    limits = np.finfo(dtype)
    normal = rng.standard_normal(shape)
    top = np.log10(float(limits.max))
    with np.errstate(all="ignore"):
        values = {
            "normal": lambda: normal,
            "small": lambda: 0.1 * normal,
            "integers": lambda: rng.integers(-3, 4, shape),
            "equal": lambda: np.full(shape, rng.standard_normal()),
            "zeros": lambda: rng.choice([0.0, -0.0], shape),
            "one-hot": lambda: rng.random(shape) < 0.2,
            "1e4": lambda: rng.choice([-1e4, 1e4, 0.0, 1.0], shape),
            "huge": lambda: rng.choice([-1.0, 1.0, 0.0], shape) * 10 ** (top - 8),
            "largest": lambda: rng.choice([-1.0, 1.0], shape) * float(limits.max),
            "tiny": lambda: normal * float(limits.tiny) * 1e5,
            "subnormal": lambda: normal * float(limits.tiny) * 1e-2,
            "magnitudes": lambda: np.sign(normal) * 10 ** rng.uniform(-top, top, shape),
        }[kind]()
        return np.clip(np.asarray(values, dtype), limits.min, limits.max)


def _every_second(a: np.ndarray) -> np.ndarray:
    if a.ndim == 0:
        return a
    wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _reversed(a: np.ndarray) -> np.ndarray:
    if a.ndim == 0:
        return a
    backwards = tuple(slice(None, None, -1) for _ in a.shape)
    return a[backwards].copy()[backwards]


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a: np.ndarray) -> np.ndarray:
    if a.dtype.hasobject:
        return a
    a = np.ascontiguousarray(a)
    return np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda a: a.tolist(),
    "Fortran": np.asfortranarray,
    "reversed": _reversed,
    "every second": _every_second,
    "read-only": _read_only,
    "unaligned": _unaligned,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim and len(a) else a,
    "broadcast rows": lambda a: np.broadcast_to(a[..., :1], a.shape) if a.size and a.ndim else a,
    "one more axis": lambda a: a[None],
    "leading axes": lambda a: np.stack([a, a]),
}

TYPES = (
    np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint64, bool, np.complex64, np.complex128,
    np.longdouble, object, "U8", "S3", "datetime64[s]", "V4",
)  # fmt: skip


def _as_type(a: np.ndarray, dtype: Any) -> Any:
    if a.dtype.hasobject:
        return a
    if a.dtype.kind == "c" and np.dtype(dtype).kind != "c":
        a = a.real
    with np.errstate(all="ignore"):
        if dtype == "V4":
            return np.zeros(a.shape, [("x", "f4")])
        if np.dtype(dtype).kind in "iuM":
            a = (
                np.clip(np.nan_to_num(np.asarray(a.real, float)), 0, 100)
                if a.dtype.kind in "biufc"
                else np.ones(a.shape)
            )
        return np.asarray(a).astype(np.int64 if np.dtype(dtype).kind == "M" else a.dtype).astype(dtype)


def _other_shape(a: np.ndarray, way: int) -> np.ndarray:
    axis = way // 5 % max(a.ndim, 1)
    if a.dtype.hasobject:
        return a
    if a.ndim == 0:
        return np.repeat(a[None], way % 5, axis=0)
    ways: list[Callable[[], Any]] = [
        lambda: a.take([], axis=axis),
        lambda: a.take([0], axis=axis) if a.shape[axis] else a,
        lambda: np.concatenate([a, a], axis=axis),
        lambda: a.ravel()[0] if a.size else a.sum(axis=axis),
        lambda: a.sum(axis=axis),
    ]
    with np.errstate(all="ignore"):
        return np.asarray(ways[way % 5]())


def _with_entry(a: np.ndarray, entry: float, place: int) -> np.ndarray:
    a = np.array(a, copy=True)
    if a.size and a.dtype.kind in "fc":
        with np.errstate(over="ignore"):
            a.flat[place % a.size] = entry
    return a


class Nothing:
    """An object that is no number, no text, no array."""


JUNK: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: "text",
    lambda: "",
    lambda: b"bytes",
    lambda: np.str_("fast"),
    lambda: True,
    lambda: np.False_,
    lambda: 0,
    lambda: -1,
    lambda: 10**30,
    lambda: -(2**63),
    lambda: 1 << 14,
    lambda: 2**31,
    lambda: 1.5,
    lambda: float("nan"),
    lambda: float("-inf"),
    lambda: 1e300,
    lambda: -1e-320,
    lambda: 1j,
    lambda: np.float32(0.5),
    lambda: np.int8(3),
    lambda: np.array(2.0),
    lambda: np.array(2),
    lambda: np.array([2.0]),
    lambda: np.longdouble("1e4000"),
    lambda: [],
    lambda: [[1.0], [2.0, 3.0]],
    lambda: [1.0, "x"],
    lambda: {},
    lambda: {1.0},
    lambda: (1.0, None),
    lambda: iter([1.0]),
    lambda: Nothing(),
    lambda: Nothing,
    lambda: np.float64,
    lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    lambda: np.array([None, 1.0]),
    lambda: np.ones((0, 3)),
)

HOW = ("layout", "layout", "layout", "type", "shape", "entry", "entry", "junk")


def _hostile(draw: Any, value: Any) -> Any:
    """Make one argument hostile; a layout only changes how the same numbers lie in memory."""
    how = draw(st.sampled_from(HOW)) if isinstance(value, np.ndarray) else "junk"
    if how == "junk":
        return draw(st.sampled_from(JUNK))()
    if how == "layout":
        with np.errstate(all="ignore"):
            return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](value)
    if how == "type":
        return _as_type(value, draw(st.sampled_from(TYPES)))
    if how == "shape":
        return _other_shape(value, draw(st.integers(0, 14)))
    return _with_entry(value, draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e300, 5e-324])), draw(st.integers(0, 99)))


@st.composite
def calls(draw: Any, build: Callable[[Any], dict[str, Any]]) -> Any:
    """Draw arguments: `build(draw)` says what fits (`Array`, `Given`, `Option`); some are then made hostile.

    What `build` returns in the place of a dictionary is returned as it is.
    """
    fitting = build(draw)
    if not isinstance(fitting, dict):
        return fitting
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    kind = draw(st.sampled_from(("each its own", *KINDS)))
    arguments: dict[str, Any] = {}
    for name, what in fitting.items():
        if isinstance(what, Array):
            own = kind if kind in what.kinds else draw(st.sampled_from(what.kinds))
            arguments[name] = numbers(rng, what.shape, own, dtype)
        else:
            arguments[name] = what.value if isinstance(what, Given) else draw(what.strategy)
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 1, 1, 1, 2)))):
        name = draw(st.sampled_from(list(fitting)))
        arguments[name] = _hostile(draw, arguments[name])
    return arguments


@dataclass(frozen=True)
class Heads:
    """Shapes of q, k and v that fit together."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the output."""
        lead = self.q[:-2] if len(self.q) >= len(self.k) else np.broadcast_shapes(self.q[:-2], self.k[:-2])
        return (*lead, self.q[-2], self.v[-1])


LEADS = ((), (), (), (), (2,), (1,), (2, 2))
LENGTHS = (1, 2, 3, 5, 8, 13, 33, 70)


def heads(draw: Any, *, square: bool = True, widths: tuple[int, ...] = (1, 2, 3, 8)) -> Heads:
    """Draw shapes: lengths, widths, leading axes, at times with fewer key-value heads."""
    n, d, d_v = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from(widths)), draw(st.sampled_from((1, 2, 5)))
    n_k = n if square else draw(st.sampled_from(LENGTHS))
    lead = draw(st.sampled_from(LEADS))
    kv_lead = lead
    if lead and draw(st.booleans()):
        kv_lead = draw(st.sampled_from([(*lead[:-1], 1), lead]))
        lead = (*lead[:-1], lead[-1] * 2)
    return Heads((*lead, n, d), (*kv_lead, n_k, d), (*kv_lead, n_k, d_v))


def option(*fitting: Any) -> Option:
    """One of these values."""
    return Option(st.sampled_from(fitting))


SCALES = option(None, None, 1.0, -0.5, 0.0, 1e-3, 1e10)
