"""The plain softmax of masked logits, with the mistakes people make in it (ours).

Shared by the plain implementations of every operation that ends in a softmax; the truths share nothing with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.precision import Precision

LOW_START = "maximum starts at −5·10⁴"

FAULTS = {
    "unstable softmax": "the exponentials are taken of the logits without subtracting the row's maximum",
    "exponential of base 2": "2 is raised to the logits where e was wanted (exp2 without the factor log2 e)",
    "rows not normalised": "the weights are not divided by their sum",
    "masked keys counted": "masked keys enter the sum of the weights, as if their logit were 0",
    "softmax before mask": "the mask is applied to the weights after the softmax, without normalising again",
    "NaN from empty rows": "a row with no allowed key divides zero by zero; zeros were wanted",
    "mean in empty rows": "a row with no allowed key averages every value; zeros were wanted",
    "softmax correction dropped": "the backward of the softmax leaves out the row sums of P ∘ dP",
}


def softmax(logits: FloatArray, allowed: NDArray[np.bool_], to: Precision, fault: str | None) -> FloatArray:
    """Return the weights of every row over its allowed keys; rows with none are zero."""
    allowed = np.broadcast_to(allowed, logits.shape)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        seen = np.ones_like(allowed) if fault == "softmax before mask" else allowed
        hidden = np.where(seen, logits, -np.inf)
        largest = hidden.max(axis=-1, keepdims=True, initial=-np.inf)
        largest = np.where(np.isneginf(largest), 0, largest)
        if fault == LOW_START:
            largest = np.maximum(largest, logits.dtype.type(-5e4))
        if fault in ("unstable softmax", "masked keys counted"):
            largest = np.zeros_like(largest)
        shifted = to.carry(hidden - largest)
        weights = to.carry(np.exp2(shifted) if fault == "exponential of base 2" else np.exp(shifted))
        total = to.carry(weights.sum(axis=-1, keepdims=True))
        if fault == "masked keys counted":
            total = total + (~allowed).sum(axis=-1, keepdims=True)
        if fault == "rows not normalised":
            return weights
        empty = ~seen.any(axis=-1, keepdims=True)
        if fault == "NaN from empty rows":
            return to.carry(weights / total)
        if fault == "unstable softmax":
            return np.where(empty, 0, to.carry(weights / total))
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
        if fault == "mean in empty rows":
            weights = np.where(empty, np.asarray(1 / logits.shape[-1], weights.dtype), weights)
        return to.carry(np.where(allowed, weights, 0) if fault == "softmax before mask" else weights)


def softmax_backward(weights: FloatArray, dweights: FloatArray, to: Precision, fault: str | None) -> FloatArray:
    """Return the gradient with respect to the logits."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # forward: weights = softmax(logits)
        correction = to.carry((weights * dweights).sum(axis=-1, keepdims=True))
        if fault == "softmax correction dropped":
            correction = np.zeros_like(correction)
        return to.carry(weights * (dweights - correction))
