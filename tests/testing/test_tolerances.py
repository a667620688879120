"""Tolerances are found by name and dtype, each with its reason, and sit above the rounding they speak of."""

import ml_dtypes
import numpy as np
import pytest

from refattn.testing import Tolerance, tolerance

KNOWN = {
    "reordered": {"float64": 1e-12, "float32": 2e-4},
    "rounding": {"float64": 1e-15, "float32": 5e-7},
    "stored": {"float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2},
    "differences": {"float64": 1e-7},
}
"""A tolerance is loosened here too, or not at all."""
PAIRS = [(name, dtype) for name, dtypes in KNOWN.items() for dtype in dtypes]


@pytest.mark.parametrize(("name", "dtype"), PAIRS, ids="-".join)
def test_every_tolerance_has_a_reason_and_lies_above_half_a_unit_of_rounding(name, dtype):
    found = tolerance(name, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert isinstance(found, Tolerance)
    assert len(found.reason) > 20
    assert ml_dtypes.finfo(dtype).eps / 2 < found.rtol == KNOWN[name][dtype]


def test_the_default_is_float64():
    assert tolerance("reordered") == tolerance("reordered", np.float64) == tolerance("reordered", np.dtype("f8"))


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        ValueError, match=r"^name: 'loose' came, one of 'reordered', 'rounding', 'stored', 'row', 'differences'"
    ):
        tolerance("loose")


@pytest.mark.parametrize(("name", "dtype"), [("reordered", "int64"), ("differences", "float32")], ids="-".join)
def test_a_dtype_without_a_tolerance_lists_those_with_one(name, dtype):
    with pytest.raises(ValueError, match=f"^dtype: {dtype} came, one of float64.* was wanted for '{name}'"):
        tolerance(name, dtype)
