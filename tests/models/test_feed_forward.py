"""The gate of SwiGLU: to the last digits at any size, where a logistic function in float32 loses what is small."""

import numpy as np
import pytest

from refattn.models.layers import swiglu_backward, swiglu_forward

EDGES = [0.0, -0.0, np.inf, 1e-30, -1e-30, 16.7, 87.0, 88.8, 103.0, 710.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_gate_has_its_digits(dtype):
    x = np.concatenate([np.linspace(-100, 100, 4001), EDGES, np.negative(EDGES), -np.logspace(-8, 2.8, 500)])
    x = x.astype(dtype)[None]
    wide = x.astype(np.longdouble)
    right = 1 / (1 + np.exp(-wide))
    _, cache = swiglu_forward(x, np.ones_like(x))
    info = np.finfo(dtype)
    assert (np.abs(cache.open - right) <= 4 * info.eps * right + 2 * info.smallest_subnormal).all()
    assert (cache.open[x == np.inf], cache.open[x == -np.inf]) == (1, 0)


def test_small_gradients_of_a_shut_gate_are_not_lost():
    gate, up = np.float32([[-88.5, -95.0]]), np.float32([[1e30, 1e30]])
    out, cache = swiglu_forward(gate, up)
    dgate, dup = swiglu_backward(np.ones_like(out), cache)
    wide = gate.astype(np.longdouble)
    opening = 1 / (1 + np.exp(-wide))
    np.testing.assert_allclose(out, wide * opening * 1e30, rtol=1e-3)
    np.testing.assert_allclose(dgate, 1e30 * opening * (1 + wide * (1 - opening)), rtol=1e-3)
    np.testing.assert_allclose(dup, wide * opening, rtol=1e-3)
