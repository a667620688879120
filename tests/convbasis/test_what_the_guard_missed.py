"""What the guard missed before every product was guarded by its own vectors: each case by its name, with right values.

The table is in docs/explanation/guards.md; what is tested elsewhere is named there. Every row of the output and of
every gradient is compared with the dense definition, relative to its own natural size (`excesses`): at most 1 is right.
"""

import numpy as np
import pytest
from convbasis.test_zeros_and_decades import Case, excesses
from lengths import long

from refattn import conv_attention_backward, conv_attention_forward, dense_attention_backward, dense_attention_forward
from refattn.convbasis import Plan
from refattn.testing import rope_structured

N = 1024
DTYPES = [np.float64, np.float32]
WAYS = {
    "default": ({}, "approximation"),
    "full": ({"mask": "full"}, "approximation"),
    "paper": ({"method": "paper"}, "approximation"),
    "paper, full": ({"method": "paper", "mask": "full"}, "approximation"),
    "attention": ({}, "attention"),
    "attention, full": ({"mask": "full"}, "attention"),
    "attention, paper": ({"method": "paper"}, "attention"),
}
every_way = pytest.mark.parametrize(
    "way", ["default", "paper", "attention", *long(*(way for way in WAYS if "full" in way or "," in way))]
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


def case(dtype, *, seed, deviation=1.0, starts=(0, 256), d=16, d_v=None, way="default", **options):
    """Inputs with two terms and a normal upstream gradient, to be changed by the test."""
    more, gradient = WAYS[way]
    d = 8 if gradient == "attention" else d  # 2 d_v + 3 products, one after the other
    q, k, v, _ = rope_structured(N, d, starts=list(starts), seed=seed, deviation=deviation, dtype=dtype, d_v=d_v)
    upstream = np.random.default_rng(seed).standard_normal(v.shape).astype(dtype)
    delta = 1e-6 if dtype == np.float64 else 1e-2
    options = {"n_basis": 2, "probe": 8, "delta": delta, **more, **options}
    return Case({"q": q, "k": k, "v": v.copy()}, upstream, options, gradient)


def both(given):
    """Output, cache and gradients."""
    out, cache = conv_attention_forward(**given.arrays, **given.options)
    return out, cache, conv_attention_backward(given.upstream, cache, gradient=given.gradient)


def require_rows(given):
    worst = excesses(given)
    assert max(worst.values()) <= 1, worst


@pytest.mark.slow
@every_way
@every_dtype
@pytest.mark.parametrize("deviation", [*long(4.0, 8.0), 16.0])
def test_values_that_are_padding_lose_no_row_of_a_gradient(deviation, dtype, way):
    """The forward multiplies nothing there and loses nothing; the backward multiplies the upstream gradient."""
    for seed in (0, 1) if way == "default" else (1,):
        given = case(dtype, seed=seed, deviation=deviation, way=way)
        given.arrays["v"][:256] = 0
        require_rows(given)


@pytest.mark.parametrize("deviation", [4.0, 8.0, 16.0])
def test_the_gradient_of_values_that_are_padding_is_exact_attentions(deviation):
    """The basis is exact, so an implementation that knows of none has the right values."""
    given = case(np.float64, seed=1, deviation=deviation)
    given.arrays["v"][:256] = 0
    _, _, found = both(given)
    right = dense_attention_backward(given.upstream, dense_attention_forward(*given.arrays.values())[1])
    size = np.abs(right.v).max()
    np.testing.assert_allclose(found.v / size, right.v / size, rtol=0, atol=1e-12)


@every_dtype
def test_what_a_backward_computed_directly_is_reported(dtype):
    given = case(dtype, seed=0, deviation=16.0)
    given.arrays["v"][:256] = 0
    recomputed = both(given)[2].recomputed
    assert 0 < recomputed.queries < N
    assert 0 < recomputed.keys < N
    assert 0 < recomputed.lags < 2 * N


@every_dtype
@pytest.mark.parametrize("size", [1e6, *long(1e-6, 1.0)])
@pytest.mark.parametrize("d_v", [65, 1, 3, 64])
def test_a_column_of_values_shares_no_transform_with_one_of_another_size(d_v, size, dtype):
    """With an odd width the last column of V travelled with a column of ones, that of G with r = G · Y."""
    for seed in (0, 1):
        given = case(dtype, seed=seed, d=64, d_v=d_v)
        given.arrays["v"][...] *= size
        require_rows(given)


@every_way
@every_dtype
def test_late_rows_of_a_tiny_upstream_gradient_are_not_drowned_by_early_ones(dtype, way):
    """A masked loss: dv of the keys that only late rows see is 1e8 times smaller than that of the others."""
    plan = {} if "method" in WAYS[way][0] else {"plan": Plan("block transform", 128)}
    for seed in (0, 1) if way == "default" else (1,):
        given = case(dtype, seed=seed, way=way, **plan)
        given.upstream[600:] *= dtype(1e-8)
        require_rows(given)


@pytest.mark.parametrize("name", ["dout", "q", "k", "v", "all of them"])
@pytest.mark.parametrize("gradient", ["approximation", "attention"])
def test_arrays_in_fortran_order_give_the_same_bits(gradient, name):
    given = case(np.float64, seed=0, deviation=2.0, plan=Plan("block transform", 256))._replace(gradient=gradient)
    all_of_them = name == "all of them"
    arrays = {key: np.asfortranarray(x) if all_of_them or key == name else x for key, x in given.arrays.items()}
    upstream = np.asfortranarray(given.upstream) if all_of_them or name == "dout" else given.upstream
    out, _, found = both(given)
    fortran_out, _, fortran = both(given._replace(arrays=arrays, upstream=upstream))
    for a, b in zip((out, *found), (fortran_out, *fortran), strict=True):
        np.testing.assert_array_equal(a, b)


@every_way
@pytest.mark.parametrize("d_v", [1, 3, 4, 17])
def test_a_gradient_that_fits_is_not_refused_for_what_overflows_on_the_way(d_v, way):
    given = case(np.float32, seed=0, d=64, d_v=d_v, way=way)
    given.arrays["v"][...] *= np.float32(1e20)
    require_rows(given)


ZERO_PRODUCTS = [((0, 256), 64, 0, "default"), ((0, 512), 64, 6, "default"), *(((0, 256), 16, 4, way) for way in WAYS)]


@pytest.mark.slow
@pytest.mark.parametrize(("starts", "d", "seed", "way"), ZERO_PRODUCTS)
def test_a_factor_that_overflows_makes_no_nan_of_a_product_that_is_zero(starts, d, seed, way):
    """Logits to 300 over values of zero: 1/D beyond float32 times exactly nothing."""
    given = case(np.float32, seed=seed, deviation=60.0, starts=starts, d=d, way=way)
    given.arrays["v"][: starts[1]] = 0
    require_rows(given)
    out, cache, _ = both(given)
    assert np.isfinite(out).all()
    assert cache.largest_bound <= cache.tol
