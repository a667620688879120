"""NaN and overflow: looked for unless told otherwise, and refused where they would reach a result."""

import inspect
import warnings

import numpy as np
import pytest

import refattn._validation
import refattn.convbasis
import refattn.lowrank
import refattn.models
import refattn.patterns
import refattn.sparsek
import refattn.testing
from refattn import (
    Causal,
    dense_attention,
)

Q, K, V = np.random.default_rng(0).standard_normal((3, 5, 4))


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


BASIS = refattn.ConvBasis([0], [Q @ K[0]])
FINITE = {
    "dense_attention": {"q": Q, "k": K, "v": V},
    "dense_attention_forward": {"q": Q, "k": K, "v": V},
    "conv_attention": {"q": Q, "k": K, "v": V, "n_basis": 2, "probe": 1, "delta": 0.1},
    "conv_attention_forward": {"q": Q, "k": K, "v": V, "n_basis": 2, "probe": 1, "delta": 0.1},
    "recover": {"q": Q, "k": K, "n_basis": 2, "probe": 1, "delta": 0.1},
    "basis_from_starts": {"q": Q, "k": K, "starts": [0]},
    "closeness": {"q": Q, "k": K, "basis": BASIS, "probe": 1},
    "logit_residual": {"q": Q, "k": K, "basis": BASIS},
    "lowrank_attention": {"q": Q, "k": K, "v": V, "features": refattn.lowrank.RandomFeatures(4, 3, seed=0)},
    "lowrank_attention_forward": {"q": Q, "k": K, "v": V, "features": refattn.lowrank.RandomFeatures(4, 3, seed=0)},
    "indexed_attention": {"q": Q, "k": K, "v": V, "indices": [[0, 4]] * 5},
    "indexed_attention_forward": {"q": Q, "k": K, "v": V, "indices": [[0, 4]] * 5},
    "sparsek_attention": {"q": Q, "k": K, "v": V, "scores": Q[:, 0], "n_select": 2},
    "sparsek_attention_forward": {"q": Q, "k": K, "v": V, "scores": Q[:, 0], "n_select": 2},
}
"""Every public function that can be told not to look for NaN, and arguments of it."""
PUBLIC = {
    name: getattr(module, name)
    for module in (
        refattn,
        refattn.convbasis,
        refattn.lowrank,
        refattn.patterns,
        refattn.sparsek,
        refattn.testing,
        refattn.models,
    )
    for name in module.__all__
}


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, given in FINITE.items() for name in ("q", "k", "v", "scores") if name in given],
)
def test_nan_is_looked_for_unless_told_otherwise(function, name):
    given = FINITE[function] | {name: put(FINITE[function][name], -1, np.nan)}
    with pytest.raises(ValueError, match=rf"^{name}: nan at index"):
        PUBLIC[function](**given)


@pytest.mark.parametrize(
    "function", [name for name in FINITE if "lowrank" not in name]
)  # features refuse it in any case
@pytest.mark.parametrize("name", ["q", "k"])
def test_nan_is_not_looked_for_where_told_so(function, name):
    given = FINITE[function] | {name: put(FINITE[function][name], -1, np.nan)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            PUBLIC[function](**given, check_finite=False)
            message = ""
        except ValueError as error:  # it reached a result
            message = str(error)
    assert not message.startswith(f"{name}: nan at index")


def test_no_public_function_that_looks_for_nan_is_left_out():
    functions = {name: x for name, x in PUBLIC.items() if inspect.isfunction(x)}
    assert {x for x, function in functions.items() if "check_finite" in inspect.signature(function).parameters} == set(
        FINITE
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_unchecked_keys_may_be_anything_where_the_mask_hides_them(bad):
    seen = np.arange(5) < 3
    out = dense_attention(Q, np.where(seen[:, None], K, bad), V, mask=seen, check_finite=False)
    assert np.array_equal(out, dense_attention(Q, K, V, mask=seen))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_unchecked_nan_that_reaches_the_result_is_refused_and_not_returned(name):
    arrays = {"q": Q, "k": K, "v": V}
    arrays[name] = put(arrays[name], (2, 0), np.nan)
    with pytest.raises(ValueError, match="is nan in float64" if name in "qk" else "^v: output: nan"):
        dense_attention(**arrays, check_finite=False)


@pytest.mark.parametrize("size", [1e4, 1e150], ids=str)
def test_large_finite_logits_are_computed(size):
    assert np.isfinite(dense_attention(size * Q, size * K, V)).all()


def test_a_huge_entry_with_a_tiny_partner_is_no_overflow():
    out = dense_attention(1e300 * Q, 1e-300 * K, V)
    np.testing.assert_allclose(out, dense_attention(Q, K, V), rtol=1e-13)


def test_a_softcap_does_not_hide_an_overflow():
    q, k = np.array([[1e200, 1.0]]), np.array([[1e200, 1.0]])
    with pytest.raises(ValueError, match=r"^q, k: the logit of query 0 and key 0 is inf in float64"):
        dense_attention(q, k, k, softcap=30.0)


def test_an_overflow_that_the_mask_hides_does_not_matter():
    k = put(K, 4, 1e308)
    out = dense_attention(1e5 * np.abs(Q[:4]), k, V, mask=Causal("top-left"))
    assert np.array_equal(out, dense_attention(1e5 * np.abs(Q[:4]), K, V, mask=Causal("top-left")))


def test_the_overflowing_pair_is_named_by_its_place_in_the_whole():
    q, k = (put(a, 4, 1e200) for a in (Q, K))
    with pytest.raises(ValueError, match="query 4 and key 4 is inf"):
        dense_attention(q, k, V, block=2)


def test_a_sum_that_overflows_is_no_bad_entry():
    refattn._validation.require_finite("q", np.full(5, 1e308))
    refattn._validation.require_finite("q", np.zeros((0, 3)))
