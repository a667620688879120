"""What stands between the two maps of a feed-forward block: SwiGLU (Shazeer 2020) or GELU (Hendrycks and Gimpel 2016).

GELU is in the form GPT-2 uses, ``½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from refattn._validation import FloatArray

_CUBE = 0.044715
_RATE = math.sqrt(2 / math.pi)


class SwiGLUCache(NamedTuple):
    """What `swiglu_backward` needs: both inputs, and the logistic function of the first."""

    gate: FloatArray
    up: FloatArray
    open: FloatArray


def swiglu_forward(gate: FloatArray, up: FloatArray) -> tuple[FloatArray, SwiGLUCache]:
    """``silu(gate) ∘ up`` with ``silu(x) = x σ(x)``, ``σ(x) = 1/(1 + e^(−x))``."""
    opening = expit(gate)
    out = gate * opening
    out *= up
    return out, SwiGLUCache(gate, up, opening)


def swiglu_backward(dout: FloatArray, cache: SwiGLUCache) -> tuple[FloatArray, FloatArray]:
    """Pull a gradient back to gate and up.

    With ``σ' = σ (1 − σ)``, ``silu'(x) = σ + x σ (1 − σ) = σ (1 + x (1 − σ))``.
    """
    gate, up, opening = cache
    # forward: out *= up
    dup = gate * opening
    dup *= dout
    # forward: out = gate * opening
    dgate = 1 - opening
    dgate *= gate
    dgate += 1
    dgate *= opening
    dgate *= up
    dgate *= dout
    return dgate, dup


class GELUCache(NamedTuple):
    """What `gelu_backward` needs: the input, and the hyperbolic tangent."""

    x: FloatArray
    tanh: FloatArray


def gelu_forward(x: FloatArray) -> tuple[FloatArray, GELUCache]:
    """``½ x (1 + t)`` with ``t = tanh(c (x + a x³))``, ``c = √(2/π)``, ``a = 0.044715``."""
    inner = x * x
    inner *= _CUBE * _RATE
    inner += _RATE
    inner *= x
    t = np.tanh(inner, out=inner)
    out = 1 + t
    out *= x
    out *= 0.5
    return out, GELUCache(x, t)


def gelu_backward(dout: FloatArray, cache: GELUCache) -> FloatArray:
    """Pull a gradient back: ``t' = (1 − t²) c (1 + 3 a x²)``, so the derivative is ``½ (1 + t) + ½ x t'``."""
    x, t = cache
    # forward: t = tanh(c (x + a x³))
    slope = x * x
    slope *= 3 * _CUBE * _RATE
    slope += _RATE
    slope *= 1 - t * t
    # forward: out = ½ x (1 + t)
    slope *= x
    slope += t
    slope += 1
    slope *= 0.5
    slope *= dout
    return slope
