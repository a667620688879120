"""Compiled loops of the layers that treat every row alone (ours): one row after the other, forward and backward.

Derivations, and what the letters mean, are in the layers' own files. Results are out-arguments; to sums over rows,
`dgain` and `dshift`, is added. A sum along a row is the sum of four, one of every fourth entry each. Imported where it
is used, never at the package's import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled_with_fma
from refattn._exponential import exp_float32, exp_float64
from refattn._validation import FloatArray


@compiled_with_fma
def _dot(a: FloatArray, b: FloatArray) -> Any:
    """Return ``Σ_i a_i b_i``."""
    s0 = s1 = s2 = s3 = a.dtype.type(0)
    whole = a.size // 4 * 4
    for i in range(0, whole, 4):
        s0 += a[i] * b[i]
        s1 += a[i + 1] * b[i + 1]
        s2 += a[i + 2] * b[i + 2]
        s3 += a[i + 3] * b[i + 3]
    for i in range(whole, a.size):
        s0 += a[i] * b[i]
    return (s0 + s1) + (s2 + s3)


@compiled_with_fma
def _sum(a: FloatArray, zero: Any) -> Any:
    """Return ``Σ_i a_i``, in the precision of `zero`."""
    s0 = s1 = s2 = s3 = zero
    whole = a.size // 4 * 4
    for i in range(0, whole, 4):
        s0 += a[i]
        s1 += a[i + 1]
        s2 += a[i + 2]
        s3 += a[i + 3]
    for i in range(whole, a.size):
        s0 += a[i]
    return (s0 + s1) + (s2 + s3)


@compiled_with_fma
def rms_norm(x: FloatArray, gain: FloatArray, eps: Any, rate: FloatArray, out: FloatArray) -> None:
    """``out = x r ∘ gain`` with ``r = 1/√(mean x² + ε)``."""
    one, width = x.dtype.type(1), x.dtype.type(x.shape[1])
    for row in range(x.shape[0]):
        r = one / np.sqrt(_dot(x[row], x[row]) / width + eps)
        rate[row, 0] = r
        for i in range(x.shape[1]):
            out[row, i] = x[row, i] * r * gain[i]


@compiled_with_fma
def rms_norm_backward(
    dout: FloatArray, x: FloatArray, rate: FloatArray, gain: FloatArray, dx: FloatArray, dgain: FloatArray
) -> None:
    """``dgain += Σ_rows dout ∘ u``, ``dx = r (du − u mean(du ∘ u))``."""
    width = x.dtype.type(x.shape[1])
    for row in range(x.shape[0]):
        r = rate[row, 0]
        # forward: out = u ∘ gain, with u = x r
        for i in range(x.shape[1]):
            dgain[i] += dout[row, i] * (x[row, i] * r)
            dx[row, i] = dout[row, i] * gain[i]
        # forward: u = x r
        along = _dot(dx[row], x[row]) * r / width
        for i in range(x.shape[1]):
            dx[row, i] = r * (dx[row, i] - x[row, i] * r * along)


@compiled_with_fma
def layer_norm(
    x: FloatArray, gain: FloatArray, shift: FloatArray, eps: Any, mean: FloatArray, rate: FloatArray, out: FloatArray
) -> None:
    """``out = c r ∘ gain + shift`` with ``c = x − mean x`` and ``r = 1/√(mean c² + ε)``."""
    zero, one, width = x.dtype.type(0), x.dtype.type(1), x.dtype.type(x.shape[1])
    for row in range(x.shape[0]):
        m = _sum(x[row], zero) / width
        for i in range(x.shape[1]):
            out[row, i] = x[row, i] - m
        r = one / np.sqrt(_dot(out[row], out[row]) / width + eps)
        mean[row, 0], rate[row, 0] = m, r
        for i in range(x.shape[1]):
            out[row, i] = out[row, i] * r * gain[i] + shift[i]


@compiled_with_fma
def layer_norm_backward(
    dout: FloatArray, x: FloatArray, mean: FloatArray, rate: FloatArray, gain: FloatArray, dx: FloatArray,
    dgain: FloatArray, dshift: FloatArray, u: FloatArray,
) -> None:  # fmt: skip
    """``dgain``, ``dshift += Σ_rows dout ∘ u, dout``, ``dx = r (du − mean du − u mean(du ∘ u))``; u is workspace."""
    zero, width = x.dtype.type(0), x.dtype.type(x.shape[1])
    for row in range(x.shape[0]):
        m, r = mean[row, 0], rate[row, 0]
        for i in range(x.shape[1]):
            u[i] = (x[row, i] - m) * r
        # forward: out = u ∘ gain + shift
        for i in range(x.shape[1]):
            dshift[i] += dout[row, i]
            dgain[i] += dout[row, i] * u[i]
        for i in range(x.shape[1]):
            dx[row, i] = dout[row, i] * gain[i]
        # forward: u = c r, c = x − mean x
        level, along = _sum(dx[row], zero) / width, _dot(dx[row], u) / width
        for i in range(x.shape[1]):
            dx[row, i] = r * (dx[row, i] - level - u[i] * along)


def _swiglu_with(exp: Callable[[Any], Any]) -> Callable[..., None]:
    @compiled_with_fma
    def swiglu(gate: FloatArray, up: FloatArray, opening: FloatArray, out: FloatArray) -> None:
        """``out = gate σ(gate) ∘ up``.

        ``σ(x) = 1/(1 + e^(−x))`` is taken as ``e^x/(1 + e^x)`` below zero: no exponential overflows, and the least
        results keep their digits.
        """
        one = gate.dtype.type(1)
        for row in range(gate.shape[0]):
            for i in range(gate.shape[1]):
                x = gate[row, i]
                below = exp(x if x < 0 else -x)
                sigma = (one if x > 0 else below) / (one + below)
                opening[row, i] = sigma if x == x else x
                out[row, i] = x * sigma * up[row, i]

    return swiglu


swiglu = {np.dtype(np.float32): _swiglu_with(exp_float32), np.dtype(np.float64): _swiglu_with(exp_float64)}
"""By the dtype of the computation."""


@compiled_with_fma
def swiglu_backward(
    dout: FloatArray, gate: FloatArray, up: FloatArray, opening: FloatArray, dgate: FloatArray, dup: FloatArray
) -> None:
    """``dup = dout ∘ gate σ``, ``dgate = dout ∘ up ∘ σ (1 + gate (1 − σ))``."""
    one = gate.dtype.type(1)
    for row in range(gate.shape[0]):
        # forward: out = silu(gate) ∘ up
        for i in range(gate.shape[1]):
            dup[row, i] = gate[row, i] * opening[row, i] * dout[row, i]
        # forward: silu(gate) = gate σ(gate)
        for i in range(gate.shape[1]):
            sigma = opening[row, i]
            dgate[row, i] = (one + gate[row, i] * (one - sigma)) * sigma * up[row, i] * dout[row, i]


def _softmax_with(exp: Callable[[Any], Any]) -> Callable[..., None]:
    @compiled_with_fma
    def softmax(z: FloatArray, largest: FloatArray, p: FloatArray, log_sum_exp: NDArray[np.float64]) -> None:
        """``p_j = exp(z_j)/Σ_i exp(z_i)`` and the logarithm of the sum, which is taken in float64."""
        for row in range(z.shape[0]):
            top = largest[row]
            for j in range(z.shape[1]):
                p[row, j] = exp(z[row, j] - top)
            total = _sum(p[row], 0.0)
            log_sum_exp[row] = np.log(total) + top
            share = z.dtype.type(1 / total)
            for j in range(z.shape[1]):
                p[row, j] *= share

    return softmax


softmax = {np.dtype(np.float32): _softmax_with(exp_float32), np.dtype(np.float64): _softmax_with(exp_float64)}
"""By the dtype of the computation."""
