"""Leading axes: expanding shares the right head, and reducing is its transpose."""

import itertools

import numpy as np
import pytest

from refattn._heads import HeadLayout

# leading axes of q, k, v, and of the output
LEADS = {
    "none": ((), (), (), ()),
    "heads": ((3,), (3,), (3,), (3,)),
    "one_key_value_head": ((3,), (1,), (1,), (3,)),
    "keys_without_heads": ((3,), (), (), (3,)),
    "one_query_head": ((1,), (3,), (3,), (3,)),
    "queries_without_heads": ((), (3,), (3,), (3,)),
    "only_values_have_heads": ((), (), (3,), (3,)),
    "grouped": ((6,), (2,), (2,), (6,)),
    "grouped_batch": ((5, 6), (5, 3), (5, 3), (5, 6)),
    "grouped_values_shared": ((6,), (3,), (1,), (6,)),
    "grouped_keys_shared": ((6,), (), (3,), (6,)),
    "grouped_batch_in_keys": ((4,), (5, 2), (2,), (5, 4)),
    "grouped_batch_in_queries": ((5, 4), (2,), (2,), (5, 4)),
    "grouped_crossing": ((2, 1, 4), (3, 2), (2, 1, 1), (2, 3, 4)),
    "batch_axis_is_not_a_head_axis": ((4, 1), (2, 1, 1), (1, 3), (2, 4, 3)),
}


def arrays(name, seed=0):
    rng = np.random.default_rng(seed)
    *leads, lead = LEADS[name]
    return (*(rng.standard_normal((*own, n, d)) for own, n, d in zip(leads, (4, 5, 5), (3, 3, 2), strict=True)), lead)


def shared(array, lead):
    """The array repeated to the output's leading axes: head h uses head ``h // (H / H_own)``."""
    array = array.reshape((1,) * (len(lead) + 2 - array.ndim) + array.shape)
    for axis, size in enumerate(lead):
        array = np.repeat(array, size // array.shape[axis], axis=axis)
    return array


@pytest.mark.parametrize("name", list(LEADS))
def test_each_query_head_meets_its_groups_key_value_head(name):
    *qkv, lead = arrays(name)
    layout = HeadLayout.of(*qkv)
    assert layout.lead == lead
    assert np.prod(layout.inner) == np.prod(lead)
    for array, expanded in zip(qkv, layout.expand(*qkv), strict=True):
        assert np.array_equal(layout.merge(expanded), shared(array, lead))


@pytest.mark.parametrize("name", list(LEADS))
def test_expanding_makes_views(name):
    *qkv, _ = arrays(name)
    for array, expanded in zip(qkv, HeadLayout.of(*qkv).expand(*qkv), strict=True):
        assert np.shares_memory(array, expanded)


@pytest.mark.parametrize("name", list(LEADS))
def test_reducing_is_the_transpose_of_expanding(name):
    *qkv, _ = arrays(name)
    layout = HeadLayout.of(*qkv)
    rng = np.random.default_rng(1)
    reduce = (layout.reduce_queries, layout.reduce_keys, layout.reduce_keys)
    for array, expanded, back in zip(qkv, layout.expand(*qkv), reduce, strict=True):
        other = rng.standard_normal(expanded.shape)
        reduced = back(other, array.shape)
        assert reduced.shape == array.shape
        np.testing.assert_allclose((reduced * array).sum(), (other * expanded).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("heads", "heads_kv"), list(itertools.product(range(1, 9), range(1, 5))), ids=str)
def test_key_value_heads_fit_when_they_divide_the_query_heads_or_meet_one_query_head(heads, heads_kv):
    q, k = np.ones((heads, 2, 2)), np.ones((heads_kv, 2, 2))
    if heads == 1 or heads % heads_kv == 0:
        assert HeadLayout.of(q, k, k).lead == (max(heads, heads_kv),)
    else:
        with pytest.raises(
            ValueError, match=rf"^q: {heads} heads \(axis -3\) came, a multiple of the {heads_kv} heads"
        ):
            HeadLayout.of(q, k, k)
