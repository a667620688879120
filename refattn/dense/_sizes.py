"""Rows of which the largest entries alone tell that nothing can overflow on the way, whatever their signs (ours).

A row with NaN among its queries, keys or values never is one. What a row sees decides, so the future changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import overflow_judged
from refattn._threads import map_each
from refattn._validation import FloatArray
from refattn.dense._problem import DenseProblem
from refattn.dense._tiles import sights_of

_BIAS_ROWS = 16
"""Rows of a bias that are looked at at once."""


class Sizes(NamedTuple):
    """Largest entries, in size: of each query, of the keys and values that it may see, of its bias; (*inner, n_q)."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    bias: FloatArray


def doubtful_forward(problem: DenseProblem) -> NDArray[np.bool_]:
    """Return the rows whose logits, or sums of values, sizes do not tell to be held, shape (*inner, n_q)."""
    with overflow_judged():
        sizes = _sizes(problem)
        return np.asarray(_logits_doubtful(problem, sizes) | ~(sizes.v * problem.mask.n_k <= _held(problem)))


def doubtful_backward(dout: FloatArray, dlse: FloatArray | None, problem: DenseProblem) -> NDArray[np.bool_]:
    """Return the rows of which sizes do not tell that what they give to a gradient can be held."""
    terms, most = 4.0 * problem.mask.n_q * problem.v.shape[-1], _held(problem)
    with overflow_judged():
        sizes = _sizes(problem)
        g = _largest(dout) / (1 - problem.dropout)
        flow = np.maximum(terms * g * sizes.v, float(np.finfo(np.float64).tiny))
        if dlse is not None:
            flow += 4.0 * problem.mask.n_q * np.abs(dlse[..., 0])
        scaled = flow * max(1.0, abs(problem.scale))
        held = (terms * g <= most) & (scaled * np.maximum(1, np.maximum(sizes.q, sizes.k)) <= most)
        return np.asarray(_logits_doubtful(problem, sizes) | ~held)


def _logits_doubtful(problem: DenseProblem, sizes: Sizes) -> NDArray[np.bool_]:
    most, factor = _held(problem), abs(problem.scale) * problem.q.shape[-1]
    product = factor * sizes.q * sizes.k
    with_bias = (sizes.bias + 2 * product).astype(problem.q.dtype)  # a bias may be the lowest number, to hide a key
    return np.asarray(~((factor * sizes.q <= most) & (product <= most) & np.isfinite(with_bias)))


def _held(problem: DenseProblem) -> float:
    return float(np.finfo(problem.q.dtype).max) / 8


def _sizes(problem: DenseProblem) -> Sizes:
    mask, layout = problem.mask, problem.layout
    last = np.full(mask.n_q, mask.n_k - 1)
    for sight in sights_of(mask):
        np.minimum(last, sight.position + np.arange(mask.n_q), out=last)
    of_q, of_k, of_v = map_each(_largest, (problem.q, problem.k, problem.v))
    so_far = (np.maximum.accumulate(each, axis=-1)[..., np.maximum(last, 0)] for each in (of_k, of_v))
    q, k, v = layout.expand(*(each[..., None] for each in (of_q, *(np.where(last < 0, 0, each) for each in so_far))))
    return Sizes(q[..., 0], k[..., 0], v[..., 0], _sizes_of_bias(problem))


def _sizes_of_bias(problem: DenseProblem) -> NDArray[np.float64]:
    mask, inner = problem.mask, problem.layout.inner

    def of_head(index: tuple[int, ...]) -> NDArray[np.float64]:
        most = np.zeros(mask.n_q)
        with overflow_judged():
            for part in mask.of_head(index)[1]:
                for start in range(0, mask.n_q, _BIAS_ROWS):
                    rows = slice(start, start + _BIAS_ROWS)
                    size = np.abs(part[rows])
                    most[rows] += np.where(size < np.inf, size, 0).max(axis=1)
        return most

    if not mask.biases:
        return np.zeros((*inner, mask.n_q))
    return np.stack(map_each(of_head, np.ndindex(*inner))).reshape(*inner, mask.n_q)


def _largest(array: FloatArray) -> NDArray[np.float64]:
    """Return the largest entry of each row, in size; NaN where there is one."""
    from refattn._compiled import as_input
    from refattn.dense._loops import largest_of_rows

    rows = array.reshape(-1, array.shape[-1])
    bits = as_input(rows.view(np.dtype(f"i{array.itemsize}")))
    most = np.empty(len(rows), bits.dtype)
    largest_of_rows(bits, bits.dtype.type(np.iinfo(bits.dtype).max), most)
    return most.view(array.dtype).astype(np.float64).reshape(array.shape[:-1])
