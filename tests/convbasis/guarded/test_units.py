"""Units of columns: products come back as they were, nothing overflows that need not, and zeros have no size."""

import warnings

import numpy as np
import pytest

from refattn.convbasis.guarded.units import common_units, in_units, in_units_of, scaled, spans_too_much

N = 7
SIZES = {
    "ordinary": [1.0, 3.0, 0.2],
    "large": [1e200, 3e201, 2e200],
    "small": [1e-200, 3e-201, 2e-200],
    "uneven": [1e-150, 1.0, 1e150],
    "a column of zeros": [1e90, 0.0, 1e80],
    "zeros": [0.0, 0.0, 0.0],
}


def columns(sizes, seed):
    x = np.random.default_rng(seed).uniform(-1, 1, (N, len(sizes)))
    x[0] = 1  # the largest entry of a column is its size
    return x * sizes


@pytest.mark.parametrize("ratio", [1, 64, np.inf])
@pytest.mark.parametrize("v_kind", SIZES)
@pytest.mark.parametrize("g_kind", SIZES)
def test_products_in_units_are_those_of_the_numbers_and_near_one(g_kind, v_kind, ratio):
    g, v = np.array(SIZES[g_kind]), np.array(SIZES[v_kind])
    G, Y, V = columns(g, 1), columns(v, 2), columns(v, 3)
    units = in_units(G, Y, V, g, v, ratio)
    size = (g.astype(np.longdouble) * v).max()
    for theirs, own in ((units.V, V), (units.Y, Y)):
        came = np.ldexp((units.G @ theirs.T).astype(np.longdouble), units.exponent)
        assert (np.abs(came - G.astype(np.longdouble) @ own.T) <= 1e-14 * size).all()
    for x in units:
        assert np.isfinite(x).all()
    assert np.abs(units.V).max() <= 2**20
    assert (np.abs(units.G) @ np.abs(units.V).T).max() <= 2**20 * len(g)
    assert units.uneven == (np.ndim(common_units(v, ratio)) > 0 and bool(((g > 0) & (v > 0)).any()))


def test_a_size_in_one_unit_for_all_is_never_larger_in_the_units_of_each_column():
    """Where all columns are near one as they are, one unit for all may be the smaller: a guard must not take it so."""
    smaller = 0
    for v_exponents in ((15, 0), (-15, 0), (19, 1), (40, 0), (90, -90)):
        for g_exponent in (-19, -5, 0, 18, 60):
            g, v = np.ldexp([1.0, 1.0], g_exponent), np.ldexp([1.0, 1.0], v_exponents)
            G, Y, V = columns(g, 1), columns(v, 2), columns(v, 3)
            units, together = (in_units(G, Y, V, g, v, ratio) for ratio in (64, np.inf))
            size = np.abs(together.G).sum(axis=1)
            came = in_units_of(units, size, together)
            assert (np.ldexp(came, units.exponent - together.exponent) <= size).all()
            if together.exponent <= units.exponent:
                np.testing.assert_array_equal(np.ldexp(came, units.exponent - together.exponent), size)
            smaller += together.exponent < units.exponent
    assert smaller > 0


def test_sizes_within_the_ratio_share_a_unit_and_others_have_their_own():
    assert common_units(np.array([2.0**40, 2.0**43]), 8) == 44
    np.testing.assert_array_equal(common_units(np.array([2.0**40, 2.0**43]), 7.9), [41, 44])
    np.testing.assert_array_equal(common_units(np.array([2.0**-40, 0, 2.0**43]), 8), [-39, -39, 44])
    assert common_units(np.array([2.0**-40, 0, 2.0**-43]), 8) == -39
    assert common_units(np.zeros(3), 8) == 0


@pytest.mark.parametrize(("size", "unit"), [(2.0**19, 0), (2.0**20, 21), (2.0**-21, 0), (2.0**-22, -21)])
def test_sizes_near_one_stay_as_they_are(size, unit):
    assert common_units(np.array([size, size / 2]), 4) == unit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaling_changes_no_digit_and_what_overflows_is_infinite(dtype):
    x = np.random.default_rng(0).standard_normal((N, 3)).astype(dtype)
    limits = np.finfo(dtype)
    for exponents in (0, 7, -7, limits.maxexp - 4, np.array([3, 0, -limits.maxexp // 2])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            there = scaled(x, exponents)
            np.testing.assert_array_equal(there, np.ldexp(x, exponents))
            assert there.dtype == dtype
            np.testing.assert_array_equal(scaled(there, -np.asarray(exponents)), x)
            assert np.isinf(scaled(np.ones(3, dtype), limits.maxexp)).all()
            assert np.isinf(scaled(np.ones(3, dtype), 1 << 14)).all()
            assert not scaled(np.ones(3, dtype), -(1 << 14)).any()


@pytest.mark.parametrize(
    ("g", "v", "many"),
    [
        ([1, 1e9], [1, 1e9], False),
        ([1, 1e9], [1, 2e9], True),
        ([2e9, 1], [1e-9, 1], True),
        ([1, 1], [1e-18, 2], True),
        ([0, 1, 1e17], [0, 3], False),
        ([0, 0], [1, 1e17], False),
        ([], [0], False),
    ],
)
def test_rows_over_more_than_eighteen_decades_span_too_much(g, v, many):
    assert spans_too_much(*(np.array(sizes, np.float32) for sizes in (g, v))) == many
    assert spans_too_much(*(np.array(sizes, np.float32) for sizes in (v, g))) == many
