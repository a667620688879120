"""Attention to given pairs by its definition: exact attention with the mask that the lists say, n × n of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.dense import AttentionGradients, DenseForwardCache, dense_attention_backward, dense_attention_forward
from refattn.patterns._problem import IndexedProblem


def forward(problem: IndexedProblem) -> FloatArray:
    """Return the output."""
    return _attend(problem)[0]


def backward(dout: FloatArray, problem: IndexedProblem) -> AttentionGradients:
    """Return the gradients of q, k and v."""
    return dense_attention_backward(dout, _attend(problem)[1])


def allowed(problem: IndexedProblem) -> NDArray[np.bool_]:
    """Return which keys each query attends to, shape (…, n_q, n_k)."""
    lists, n_k = problem.indices, problem.k.shape[-2]
    seen = np.zeros((*lists.shape[:-1], n_k + 1), bool)  # the last column is for −1
    np.put_along_axis(seen, lists, True, axis=-1)
    return seen[..., :-1]


def _attend(problem: IndexedProblem) -> tuple[FloatArray, DenseForwardCache]:
    return dense_attention_forward(
        problem.q, problem.k, problem.v, mask=allowed(problem), scale=problem.scale, method="oracle",
        check_finite=False,
    )  # fmt: skip
