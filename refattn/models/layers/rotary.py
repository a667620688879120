"""Rotary positions (Su et al. 2021): pairs of neighbours ``(x_2i, x_2i+1)`` turned by the angle ``p · base^(−2i/d)``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._validation import FloatArray


class Rotation(NamedTuple):
    """Cosine and sine of the angle of every position and pair, each (n, d/2)."""

    cos: FloatArray
    sin: FloatArray


def rotation(start: int, n: int, d: int, base: float, dtype: Any) -> Rotation:
    """Return the angles of n positions from `start` on."""
    angles = np.arange(start, start + n)[:, None] * base ** (-np.arange(0, d, 2) / d)
    return Rotation(np.cos(angles).astype(dtype), np.sin(angles).astype(dtype))


def rotary_forward(x: FloatArray, turn: Rotation) -> tuple[FloatArray, Rotation]:
    """Turn every pair by the angle of its position; x is (…, n, d)."""
    return _turned(x, turn.cos, turn.sin), turn


def rotary_backward(dout: FloatArray, turn: Rotation) -> FloatArray:
    """Pull a gradient back: a turn is orthogonal, so its transpose is the turn by the opposite angle."""
    # forward: out = R(angle) x
    return _turned(dout, turn.cos, -turn.sin)


def _turned(x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    out = np.empty(x.shape, x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out
