"""Gradients of a step that is too long, shortened as one vector (Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063).

The norm is that of all gradients in one vector, ``√Σ g²``: its direction stays. PyTorch divides by the norm plus 1e-6,
the paper, and this, by the norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refattn._overflow import all_finite, overflow_judged
from refattn._validation import FloatArray, as_real

_BLOCK = 1 << 15


def global_norm(gradients: Mapping[str, FloatArray]) -> float:
    """Norm of all gradients in one vector.

    Parameters
    ----------
    gradients : mapping from str to ndarray
        In any shapes, float32 or float64.

    Returns
    -------
    float
        ``√Σ g²``, summed in float64, whatever the order of the names; NaN or infinite if an entry is, and only then,
        or if the norm itself is beyond float64.

    Raises
    ------
    TypeError
        A gradient is not an array of floats.

    Notes
    -----
    Time O(entries), memory O(1). Source: the definition.

    Examples
    --------
    >>> global_norm({"x": np.array([3.0]), "y": np.array([[4.0]])})
    5.0
    """
    for name, gradient in gradients.items():
        if getattr(getattr(gradient, "dtype", None), "kind", "") != "f":
            raise TypeError(f"gradients: {name!r} came, an array of floats was wanted")
    norm = _norm(gradients, 1.0)
    if math.isfinite(norm) and norm > 1e-150:
        return norm
    if not all_finite(*gradients.values()):
        return norm
    largest = max((float(np.abs(gradient).max(initial=0.0)) for gradient in gradients.values()), default=0.0)
    return largest * _norm(gradients, largest) if largest > 0 else 0.0  # its squares are beyond float64, or were lost


def _norm(gradients: Mapping[str, FloatArray], unit: float) -> float:
    """Return ``√Σ (g/unit)²``."""
    flat = [gradient.reshape(-1) for gradient in gradients.values()]
    blocks = (one[at : at + _BLOCK] for one in flat for at in range(0, one.size, _BLOCK))
    with overflow_judged():
        squares = [float(np.square(block.astype(np.float64) / unit).sum()) for block in blocks]
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:
        return math.inf


def clip_gradients(gradients: Mapping[str, FloatArray], most: float) -> float:
    """Shorten gradients, in place, to a global norm of at most `most`.

    Parameters
    ----------
    gradients : mapping from str to ndarray
        As for `global_norm`; written to.
    most : float
        Above 0.

    Returns
    -------
    float
        Their global norm before. If it is not finite, nothing has been changed.

    Raises
    ------
    TypeError, ValueError
        `most` is not a number above 0, or a gradient is not an array of floats.

    Notes
    -----
    Time O(entries), memory O(1). Source: arXiv 1211.5063, Algorithm 1.

    Examples
    --------
    >>> gradients = {"x": np.array([3.0]), "y": np.array([4.0])}
    >>> clip_gradients(gradients, most=1.0)
    5.0
    >>> gradients["x"], gradients["y"]
    (array([0.6]), array([0.8]))
    """
    most = as_real("most", most, positive=True)
    norm = global_norm(gradients)
    if math.isfinite(norm) and norm > most:
        for gradient in gradients.values():
            gradient *= most / norm
    return norm
