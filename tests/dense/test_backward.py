"""Gradients of exact attention: central differences, 50 digits, PyTorch."""

import mpmath
import numpy as np
import pytest
from dense_definition import MASKS, OPTIONS, definition, gradients_of, hidden_unless, inputs, normal

import refattn.dense
from refattn import dense_attention_backward, dense_attention_forward
from refattn.testing import check_jacobian, row_errors, tolerance

pytestmark = pytest.mark.usefixtures("either_way")


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["softcap"]], ids=["plain", "softcap"])
@pytest.mark.parametrize("mask", ["causal", "window 2, 1 sink", "additive", "causal, bottom-right, more queries"])
def test_every_entry_of_the_jacobian_is_right(mask, options):
    condition, n_q, n_k, _ = MASKS[mask]
    arrays = inputs("one head", n_q, n_k, seed=4)
    checks = gradients_of(refattn.dense, arrays, mask=condition, **options)
    check_jacobian(*checks, rtol=tolerance("differences").rtol)


@pytest.mark.parametrize("softcap", [None, 0.05], ids=["plain", "saturated_softcap"])
def test_gradients_agree_with_50_digit_differences(softcap):
    arrays = dict(zip("qkv", inputs("one head", 3, 3, d=2), strict=True))
    causal = hidden_unless(lambda i, j: j <= i)
    (dout,) = normal((3, 2), seed=8)
    _, cache = dense_attention_forward(**arrays, softcap=softcap)
    gradients = dense_attention_backward(dout, cache)._asdict()
    with mpmath.workdps(50):
        h = mpmath.mpf("1e-20")

        def loss(name, entry, shift):
            moved = {n: [[mpmath.mpf(x) for x in row] for row in a] for n, a in arrays.items()}
            moved[name][entry[0]][entry[1]] += shift
            out, _ = definition(**moved, mask=causal, softcap=softcap, field=mpmath.mp)
            return mpmath.fdot(dout.ravel(), out.ravel())

        for name, array in arrays.items():
            exact = np.empty_like(array)
            for entry in np.ndindex(array.shape):
                exact[entry] = (loss(name, entry, h) - loss(name, entry, -h)) / (2 * h)
            np.testing.assert_allclose(gradients[name], exact, rtol=0, atol=1e-14 * np.abs(exact).max())


@pytest.mark.parametrize("layout", ["batch and heads", "grouped", "grouped in threes"])
@pytest.mark.parametrize("mask", ["full", "causal", "window 2, 1 sink", "boolean over keys", "additive over keys"])
def test_output_and_gradients_agree_with_pytorch(mask, layout):
    torch = pytest.importorskip("torch")
    condition, n_q, n_k, meaning = MASKS[mask]
    arrays = inputs(layout, n_q, n_k, d=4, d_v=4)
    out, cache = dense_attention_forward(*arrays, mask=condition)
    (dout,) = normal(out.shape, seed=6)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    added = torch.tensor([[meaning(i, j) for j in range(n_k)] for i in range(n_q)], dtype=torch.float64)
    batched = [a if a.ndim == 4 else a[None] for a in leaves]
    peer = torch.nn.functional.scaled_dot_product_attention(*batched, attn_mask=added, enable_gqa=True)
    peer.reshape(out.shape).backward(torch.tensor(dout))
    rtol = tolerance("reordered").rtol
    assert row_errors(out, peer.detach().numpy().reshape(out.shape)).max() <= rtol
    for gradient, leaf in zip(dense_attention_backward(dout, cache), leaves, strict=True):
        right = leaf.grad.numpy()
        np.testing.assert_allclose(gradient, right, rtol=0, atol=rtol * np.abs(right).max())


@pytest.mark.parametrize("t", [1, 32, 64], ids=str)
def test_the_loss_of_past_rows_sends_no_gradient_to_the_future(t):
    q, k, v = normal((65, 8), (65, 8), (65, 8))
    out, cache = dense_attention_forward(q, k, v)
    dout = np.where(np.arange(65)[:, None] < t, 1.0, 0.0) * np.ones_like(out)
    assert not any(g[t:].any() for g in dense_attention_backward(dout, cache))
