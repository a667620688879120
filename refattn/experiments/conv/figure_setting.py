"""What differs between the authors' figure of error against k and a trained head: scale, positions, ways to k terms.

The authors' public code (github.com/hliuav/k_conv_basis, May 2024; read, not used) divides queries *and* keys by √d, so
that its logits are ``q·k/d``; a model that was trained with softmax attention has ``q·k/√d``. It runs GPT-2 with every
position 0 and takes its second layer, Recover with T = 1, δ = 1e-9 and ε = 0, and k from 5 to 640.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, as_count, as_option, as_real

SCALES: Mapping[str, Callable[[int], float]] = {"1/sqrt(d)": lambda d: d**-0.5, "1/d": lambda d: 1.0 / d}
"""The factor of the logits by its name: as models are trained, and as the authors' code has it."""

POSITIONS = ("rotary", "zero", "shuffled")
"""Where the model is told that its tokens stand: in their order, all at 0, or in an order drawn at random."""

COUNTS = (5, 10, 20, 40, 80, 160, 320, 640)
"""The authors' k."""

LAYER, PROBE, DELTA, EPS = 1, 1, 1e-9, 0.0
"""The authors' layer, counted from 0, and their T, δ and ε."""

LARGEST_SHOWN = 0.008
"""Where the error axis of the authors' plotting script ends."""


def as_factor(scale: str | float, d: int) -> float:
    """Return the factor of the logits of heads of width d that a name of `SCALES` or a number stands for.

    >>> as_factor("1/sqrt(d)", 64), as_factor("1/d", 64), as_factor(0.5, 64)
    (0.125, 0.015625, 0.5)
    """
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"scale: {scale!r} came, {' or '.join(map(repr, SCALES))} or a number was wanted")
        return SCALES[scale](as_count("d", d, least=1))
    return as_real("scale", scale)


def positions_of(kind: str, n: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the position of every token.

    >>> positions_of("rotary", 3), positions_of("zero", 3), sorted(positions_of("shuffled", 3).tolist())
    (array([0, 1, 2]), array([0, 0, 0]), [0, 1, 2])
    """
    in_order: NDArray[np.int64] = np.arange(as_count("n", n, least=1), dtype=np.int64)
    kind = as_option("positions", kind, POSITIONS)
    if kind == "zero":
        return np.zeros_like(in_order)
    return in_order if kind == "rotary" else np.random.default_rng(seed).permutation(in_order)


def running_mean(v: FloatArray) -> FloatArray:
    """Return the mean of the values so far, row by row: attention whose logits are all equal.

    >>> running_mean(np.array([[1.0], [3.0], [5.0]])).ravel()
    array([1., 2., 3.])
    """
    sums = np.cumsum(v, axis=0, dtype=np.float64)
    return np.asarray(sums / np.arange(1, len(v) + 1)[:, None], v.dtype)
