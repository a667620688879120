"""What the decoder and the encoder share: weights as they are held, tokens, heads, a call of the attention (ours)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refattn._kept import kept
from refattn._validation import FloatArray, as_array, as_real_array, cast, require_finite
from refattn.models._reading import StoredTensors

Attention: TypeAlias = Callable[[int, FloatArray, FloatArray, FloatArray], FloatArray]
"""``attention(layer, q, k, v) -> out``: q and out (n_heads, n, d), k and v (n_kv_heads, n, d), positions applied."""


class Transformer:
    """A model of a configuration, with read-only copies of its weights in one dtype."""

    config: Any

    def __init__(
        self,
        config: Any,
        shapes: Callable[[], Iterable[tuple[str, tuple[int, ...]]]],
        weights: Mapping[str, ArrayLike],
        dtype: DTypeLike,
        unused: Collection[str] = (),
    ) -> None:
        self.config = config
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype: {self.dtype} came, float32 or float64 was wanted")
        self._norm_eps = cast("norm_eps", np.asarray(config.norm_eps), self.dtype)
        _require_all_and_no_others(shapes(), weights, unused)
        self.weights: dict[str, FloatArray] = {
            name: _held(name, shape, weights, self.dtype) for name, shape in shapes()
        }

    def _checked(self, tokens: ArrayLike, least: int = 1, most: int | None = None) -> NDArray[np.int64]:
        array = as_array("tokens", tokens)
        if array.dtype.kind not in "iu":
            raise TypeError(f"tokens: dtype {array.dtype} came, integers were wanted")
        if array.ndim != 1 or len(array) < least or (most is not None and len(array) > most):
            wanted = f"n ≥ {least}" if most is None else f"{least} ≤ n ≤ {most}"
            raise ValueError(f"tokens: shape {array.shape} came, (n,) with {wanted} was wanted")
        bad = np.flatnonzero((array < 0) | (array >= self.config.vocab_size))
        if bad.size:
            raise ValueError(f"tokens: {array[bad[0]]} at index {bad[0]}, 0 … {self.config.vocab_size - 1} was wanted")
        return array.astype(np.int64)

    def _split(self, rows: FloatArray) -> FloatArray:
        """Turn (n, heads · d) into a view (heads, n, d)."""
        return rows.reshape(len(rows), -1, self.config.head_width).swapaxes(0, 1)

    def _attended(self, attention: Attention, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Return the attention's output (heads, n, d); what it is given is read-only."""
        for array in (q, k, v):
            array.flags.writeable = False
        out = cast("attention", as_real_array("attention", attention(layer, q, k, v)), self.dtype)
        if out.shape != q.shape:
            raise ValueError(f"attention: shape {out.shape} came in layer {layer}, {q.shape} was wanted")
        return out


def begin(attention: Attention, start: int) -> None:
    """Tell an attention that remembers, one with a method `begin`, that a forward begins at this position."""
    told = getattr(attention, "begin", None)
    if told is not None:
        told(start)


def _require_all_and_no_others(
    shapes: Iterable[tuple[str, tuple[int, ...]]], weights: Mapping[str, Any], unused: Collection[str]
) -> None:
    """Raise at the first tensor that is missing, however many a configuration claims, or that nothing here uses."""
    used = set()
    for name, shape in shapes:
        if name not in weights:
            raise ValueError(f"weights: tensor {name!r} is missing, one of shape {shape} was wanted")
        used.add(name)
    for name in weights:
        if name not in used and name not in unused:
            raise ValueError(f"weights: tensor {name!r} came, which this model does not compute with")


def _held(name: str, shape: tuple[int, ...], weights: Mapping[str, ArrayLike], dtype: np.dtype[Any]) -> FloatArray:
    """Return a read-only tensor that nobody else holds."""
    if isinstance(weights, StoredTensors):
        _require_shape(name, weights.shape(name), shape)  # before it is read
        tensor = weights.read(name, dtype)
        require_finite(name, tensor)
        tensor.flags.writeable = False
        return tensor
    tensor = cast(name, as_real_array(f"weights: tensor {name!r}", weights[name]), dtype)
    _require_shape(name, tensor.shape, shape)
    require_finite(name, tensor)
    return kept(tensor)


def _require_shape(name: str, came: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if came != wanted:
        raise ValueError(f"weights: tensor {name!r} of shape {came} came, {wanted} was wanted")
