"""The sizes to which the fast backward holds its gradients, where columns of the values differ much."""

import numpy as np
import pytest

from refattn.convbasis import Plan, basis_from_starts
from refattn.convbasis.fast import gradients
from refattn.convbasis.fast.softmax import FastSoftmax
from refattn.testing import attention_inputs

TOGETHER = "in_units(G, Y, V, g_columns, v_columns, np.inf)"
OF_WHAT_WAS_SCALED = "in_units(G, Y, V, terms.g_columns, terms.v_columns, np.inf)"


def units_of_sizes(module, monkeypatch, columns):
    """The units in which a backward forms the natural sizes of its gradients, for values of such columns."""
    q, k, v = attention_inputs(60, 3, seed=0)
    v, upstream = v * columns, np.random.default_rng(1).standard_normal(v.shape)
    f = FastSoftmax(basis_from_starts(q, k, [0, 20]), None, Plan("block transform", 16), 3, 1e-13)
    formed, right = [], module._terms
    monkeypatch.setattr(module, "_terms", lambda units: formed.append(units) or right(units))
    module.approximation_gradient(upstream, f.product(v)[0], q, k, v, f, 0.5)
    return v, upstream, formed


def require_inputs_in_one_unit(module, monkeypatch, size):
    v, upstream, formed = units_of_sizes(module, monkeypatch, size * np.array([1e-5, 1.0, 1e-2]))
    _, own, together = formed  # the first is of the inputs as they came
    assert own.uneven
    unit = v / together.V
    assert np.ptp(unit) == 0, "one unit for all columns"
    assert 2.0**-20 < np.abs(together.V).max() < 2.0**20, "near one"
    product = np.einsum("ia,ia->ia", upstream, v)
    np.testing.assert_allclose(together.G * together.V * 2.0**together.exponent, product, rtol=1e-14)


@pytest.mark.parametrize("size", [1e-100, 1e-30, 1.0, 1e30, 1e100], ids="size={:g}".format)
def test_the_natural_size_in_one_unit_for_all_columns_is_that_of_the_inputs(size, monkeypatch):
    require_inputs_in_one_unit(gradients, monkeypatch, size)


@pytest.mark.parametrize("size", [1e-100, 1e-30, 1e30, 1e100], ids="size={:g}".format)
def test_the_size_of_what_was_scaled_before_is_seen_to_be_another(size, altered, monkeypatch):
    wrong = altered(gradients, (TOGETHER, OF_WHAT_WAS_SCALED))
    with pytest.raises(AssertionError, match="near one"):
        require_inputs_in_one_unit(wrong, monkeypatch, size)
