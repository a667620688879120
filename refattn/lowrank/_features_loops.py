"""Compiled loops of the monomial features (arXiv 2405.05219, section 6); results and workspace are out-arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray

Index = NDArray[np.int64]


@compiled
def monomials(
    x: FloatArray, parents: Index, variables: Index, weights: FloatArray, phi: FloatArray, out: FloatArray
) -> None:
    """``out[i, c] = weights[c] · phi_c(x_i)`` with ``phi_c = phi_parent(c) · x_variable(c)`` and ``phi_0 = 1``."""
    for i in range(x.shape[0]):
        phi[0] = 1.0
        for c in range(1, phi.size):
            phi[c] = phi[parents[c]] * x[i, variables[c]]
        for c in range(phi.size):
            out[i, c] = phi[c] * weights[c]


@compiled
def monomials_pullback(
    dout: FloatArray,
    x: FloatArray,
    parents: Index,
    variables: Index,
    weights: FloatArray,
    phi: FloatArray,
    dphi: FloatArray,
    dx: FloatArray,
) -> None:
    """Add to `dx` the gradient of `monomials`; `phi` and `dphi` are workspace."""
    for i in range(x.shape[0]):
        phi[0] = 1.0
        for c in range(1, phi.size):
            phi[c] = phi[parents[c]] * x[i, variables[c]]
        # forward: out = phi · weights
        for c in range(phi.size):
            dphi[c] = dout[i, c] * weights[c]
        # forward: phi_c = phi_parent · x_variable
        for step in range(1, phi.size):
            c = phi.size - step
            dphi[parents[c]] += dphi[c] * x[i, variables[c]]
            dx[i, variables[c]] += dphi[c] * phi[parents[c]]
