"""Algorithm 1 of arXiv 2405.05219, line for line: attention inference with a k-conv basis, each product by FFT.

Symbols of the paper: ``b̃`` is the exp transform of the basis b; ``D̃ = diag(Σ_i conv(b̃_i, m_i) 1)``;
``Ỹ = D̃⁻¹ Σ_i conv(b̃_i, m_i) V``. Floating point loses rows of it; `refattn.convbasis.guarded` keeps them.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.toeplitz import subconv_product


def algorithm_1(V: FloatArray, basis: ConvBasis) -> FloatArray:
    """Algorithm 1 (conv forward) as the paper writes it; rows with small denominators are lost to rounding.

    Parameters
    ----------
    V : ndarray, shape (n, d)
        Values.
    basis : ConvBasis
        Of the causal logits of one head.

    Returns
    -------
    ndarray, shape (n, d)
        ``Ỹ``. Time O(k n d log n), memory O(kn + nd).

    Examples
    --------
    >>> import numpy as np
    >>> basis = ConvBasis([0], [[0.0, 0.0, 0.0]])  # all logits zero: a running mean
    >>> algorithm_1(np.array([[3.0], [6.0], [0.0]]), basis).round(12).ravel()
    array([3. , 4.5, 3. ])
    """
    b_exp = basis.exp_transform(shift=basis.largest)
    ones = np.ones((basis.n, 1), V.dtype)
    D = np.zeros_like(ones)
    Y = np.zeros_like(V)
    for b, m in zip(b_exp.vectors, b_exp.sizes, strict=True):
        D += subconv_product(b, int(m), ones)
        Y += subconv_product(b, int(m), V)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(Y / D)
