"""Recover in compiled loops finds what Recover next to the paper finds."""

import numpy as np
import pytest

from refattn.convbasis import recover
from refattn.convbasis.fast import recover as compiled
from refattn.testing import attention_inputs, rope_structured


def both(q, k, n_basis, probe, delta, eps=0.0):
    scale = q.shape[-1] ** -0.5
    fast = compiled.recover_heads(q, k, n_basis, probe, delta - 2 * probe * eps, scale)
    return fast, recover(q, k, n_basis=n_basis, probe=probe, delta=delta, eps=eps)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("probe", [1, 4, 17])
@pytest.mark.parametrize("kind", ["normal", "constant", "one-hot", "structured"])
def test_the_same_starts_and_kernels(kind, probe, dtype):
    for n, d in ((17, 1), (64, 3), (333, 8)):
        if kind == "structured":
            q, k, _, _ = rope_structured(n, d, starts=min(5, n), seed=n, dtype=dtype)
        else:
            q, k, _ = attention_inputs(n, d, seed=n, kind=kind, dtype=dtype)
        for n_basis, delta in ((1, 1e-3), (4, 1e-3), (n, 1e-3), (n, 0.0), (n, 1.9)):
            fast, paper = both(q, k, n_basis, probe, delta)
            np.testing.assert_array_equal(fast.starts, paper.starts)
            np.testing.assert_allclose(fast.kernels, paper.kernels, rtol=0, atol=40 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n", [511, 512, 513, 1024, 1030])
@pytest.mark.parametrize("d", [7, 8, 9])
def test_kernels_across_blocks_of_rows_are_products_of_queries_and_keys(n, d):
    q, k, _, starts = rope_structured(n, d, starts=[0, 3, 500, n - 2], seed=n)
    basis = compiled.recover_heads(q, k, 4, 1, 1e-6, 0.5)
    np.testing.assert_array_equal(basis.starts, starts)
    for kernel, c in zip(basis.kernels, starts, strict=True):
        np.testing.assert_allclose(kernel, np.pad(q[c:] @ k[c] / 2, (0, c)), rtol=0, atol=1e-14)


def test_heads_with_different_numbers_of_segments():
    one = rope_structured(120, 8, starts=[0, 50], seed=1)
    two = rope_structured(120, 8, starts=[0, 20, 90], seed=2)
    q, k = (np.stack([getattr(one, name), getattr(two, name)]) for name in "qk")
    fast, paper = both(q, k, 6, 4, 1e-6)
    assert fast.starts.tolist() == paper.starts.tolist() == [[0, 50, 120], [0, 20, 90]]


def test_a_logit_that_overflows_is_named():
    q, k, _ = attention_inputs(30, 4, seed=0, dtype=np.float32)
    q[20:] *= 1e30
    k[0] *= 1e30
    with pytest.raises(ValueError, match="q, k: logits"):
        compiled.recover_heads(q, k, 1, 1, 1e-3, 0.5)
    q, k, _ = attention_inputs(30, 4, seed=0)
    with pytest.raises(ValueError, match="column 0 overflows float64"):
        compiled.recover_heads(q * 1e200, k * 1e200, 3, 1, 1e-3, 0.5)
