"""Conv attention at the edge of the numbers: every row right, forward and backward finite or refused."""

import numpy as np
import pytest

from refattn import conv_attention_backward, conv_attention_forward
from refattn.convbasis import ConvBasis, Plan, conv_product, correlation, logit_residual
from refattn.convbasis.bounds import ROW_TOLERANCE

N = 96
STARTS = (0, 40, 41)
WAYS = {
    "direct": {"method": "fast", "plan": Plan("direct")},
    "blocks of 8": {"method": "fast", "plan": Plan("block transform", 8)},
    "blocks of 64": {"method": "fast", "plan": Plan("block transform", 64)},
    "paper": {"method": "paper"},
}


def largest_logit(dtype):
    return 1e300 if dtype is np.float64 else 1e38


def logits(kind, dtype):
    """Kernels (3, N) of one kind; what is past the last row is zeroed by `basis_of`."""
    rng = np.random.default_rng(0)
    normal, sign = rng.standard_normal((3, N)), rng.choice([-1.0, 1.0], (3, N))
    one_hot = np.zeros((3, N))
    one_hot[:, 5] = 1.0
    huge = largest_logit(dtype)
    return {
        "normal": normal,
        "1e4": sign * 1e4,
        "1e4 and near it": sign * 1e4 + normal,
        "huge": sign * huge,
        "all equal": np.full((3, N), -7.25),
        "all equal, huge": np.full((3, N), -huge),
        "one-hot": one_hot * 50,
        "one-hot, huge": one_hot * huge,
        "one finite": np.where(
            np.arange(N) == 0, np.ones((3, 1)), -huge
        ),  # −∞ is no logit of a basis: as near as it gets
        "30 decades below": np.where(np.arange(N) < N // 2, 0.0, -70.0) + normal,
    }[kind]


KINDS = (
    "normal", "1e4", "1e4 and near it", "huge", "all equal", "all equal, huge", "one-hot", "one-hot, huge",
    "one finite", "30 decades below",
)  # fmt: skip


def basis_of(kind, dtype):
    kernels = logits(kind, dtype).astype(dtype)
    kernels[np.arange(N) >= N - np.array(STARTS)[:, None]] = 0
    return ConvBasis(np.array(STARTS), kernels)


def right(lower, upper, v):
    """The output from the definition, entry by entry, in extended precision."""
    h = np.full((N, N), -np.inf, np.longdouble)
    for transposed, basis in enumerate((lower, upper)):
        for j in range(N if basis is not None else 0):
            segment = int(np.searchsorted(basis.starts, j, side="right")) - 1
            for i in range(j + transposed, N):
                h[(j, i) if transposed else (i, j)] = basis.kernels[segment, i - j]
    weights = np.exp(h - h.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)) @ v.astype(np.longdouble)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_row_is_within_the_tolerance(kind, mask, way, dtype):
    lower, upper = basis_of(kind, dtype), basis_of("normal", dtype) if mask == "full" else None
    v = np.random.default_rng(1).standard_normal((N, 3)).astype(dtype)
    q = np.zeros((N, 2), dtype)
    basis = lower if upper is None else (lower, upper)
    out, cache = conv_attention_forward(q, q, v, basis=basis, mask=mask, **WAYS[way])
    error = np.abs(out - right(lower, upper, v)).max(axis=1) / np.abs(v).max()
    assert error.max() <= ROW_TOLERANCE[np.dtype(dtype).name] + 64 * np.finfo(dtype).eps, int(error.argmax())
    found = conv_attention_backward(np.ones_like(out), cache, gradient="attention")
    assert all(np.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("power", [-250, -200, -160, -140, -30, -20, 0, 20, 36, 140, 200, 300])
def test_a_row_is_not_lost_however_small_or_large_the_values_are(power, dtype, way):
    """Squares of values below 1e-154 vanish, and with them a norm's error bound; squares above 1e154 overflow."""
    if dtype is np.float32:
        power = int(np.clip(power, -36, 37))
    lower = basis_of("30 decades below", dtype)
    v = (np.random.default_rng(1).uniform(-1, 1, (N, 3)) * 10.0**power).astype(dtype)
    q = np.zeros((N, 2), dtype)
    out, _ = conv_attention_forward(q, q, v, basis=lower, **WAYS[way])
    error = np.abs(out - right(lower, None, v)).max(axis=1) / np.abs(v).max().astype(np.longdouble)
    assert error.max() <= ROW_TOLERANCE[np.dtype(dtype).name] + 64 * np.finfo(dtype).eps, int(error.argmax())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_near_the_largest_do_not_overflow_in_a_transform(dtype):
    """A transform of them is infinite, and its error bound need not be: the row was kept."""
    rng = np.random.default_rng(5)
    v = (rng.choice([-1.0, 1.0], (N, 3)) * rng.uniform(0.5, 0.9, (N, 3)) * np.finfo(dtype).max).astype(dtype)
    lower, q = basis_of("normal", dtype), np.zeros((N, 2), dtype)
    for block in (1, 2, 8, 64):
        out, cache = conv_attention_forward(q, q, v, basis=lower, plan=Plan("block transform", block))
        assert cache.rows_recomputed < N
        error = np.abs(out - right(lower, None, v)).max(axis=1) / np.abs(v).max().astype(np.longdouble)
        assert error.max() <= ROW_TOLERANCE[np.dtype(dtype).name] + 64 * np.finfo(dtype).eps


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_as_large_as_there_are_do_not_overflow_in_a_sum(dtype, method):
    v = np.full((N, 2), np.finfo(dtype).max / 2, dtype)
    q = np.zeros((N, 2), dtype)
    out, _ = conv_attention_forward(q, q, v, basis=basis_of("all equal", dtype), method=method)
    np.testing.assert_allclose(out, v, rtol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize("gradient", ["approximation", "attention"])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e2, 1e60, 1e160, 1e300])
def test_forward_and_backward_are_finite_or_refused(size, gradient, method):
    rng = np.random.default_rng(2)
    q, k = size * rng.standard_normal((2, N, 4))
    v, dout = rng.standard_normal((2, N, 3))
    if size > 1e70:
        with pytest.raises(ValueError, match=r"^(q, k|dout): "):
            _both(q, k, v, dout, gradient, method)
    else:
        assert all(np.isfinite(one).all() for one in _both(q, k, v, dout, gradient, method))


def _both(q, k, v, dout, gradient, method):
    out, cache = conv_attention_forward(q, k, v, n_basis=N, probe=1, delta=0, method=method)
    return out, *conv_attention_backward(dout, cache, gradient=gradient)


def test_an_overflow_inside_the_papers_products_is_refused_by_the_name_of_the_argument():
    q, k, v = np.random.default_rng(3).standard_normal((3, 16, 2))
    out, cache = conv_attention_forward(q, k, v, n_basis=16, probe=1, delta=0, method="paper")
    with pytest.raises(ValueError, match=r"^dout: gradient of "):
        conv_attention_backward(np.full_like(out, 1e308), cache)


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_a_product_that_overflows_is_refused(method):
    with pytest.raises(ValueError, match=r"^a, x: product: "):
        conv_product(np.full(5, 1e200), np.full(5, 1e200), method=method)


def test_a_product_whose_transform_overflows_is_not():
    a, x = np.array([1e300, 0, 0, 0]), np.array([1e5, -1e5, 1e5, 1e5])
    np.testing.assert_allclose(conv_product(a, x), 1e300 * x, rtol=1e-13)
    np.testing.assert_allclose(conv_product(1e-300 * x, 1e-20 * a), 1e-20 * x, rtol=1e-13)


def test_a_correlation_that_overflows_is_refused():
    with pytest.raises(ValueError, match=r"^a, b: correlation: "):
        correlation(np.full((3, 1), 1e200), np.full((2, 1), 1e200))


def test_a_residual_that_overflows_is_refused():
    with pytest.raises(ValueError, match=r"^q, k: residual: "):
        logit_residual(np.full((N, 2), 1e200), np.full((N, 2), 1e200), basis_of("normal", np.float64))


@pytest.mark.parametrize("index", [[N], [-1], [0, N + 3]], ids=["one too far", "negative", "far"])
def test_a_row_beyond_the_matrix_is_refused(index):
    """The kernels of a stack lie one behind the other: beyond one there is the next."""
    for read in (basis_of("normal", np.float64).rows, basis_of("normal", np.float64).columns):
        with pytest.raises(ValueError, match=r"^index: "):
            read(index)
