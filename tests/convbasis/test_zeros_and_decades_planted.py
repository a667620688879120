"""The property of `test_zeros_and_decades` can fail: it finds each way in which rows have been lost."""

import numpy as np
import pytest
from convbasis.test_zeros_and_decades import draw, excesses
from gradient_faults import FAULTS

SEEDS = {
    "forward_list_reused": (28, 40, 79, 127, 128, 150),
    "column_packed": (176, 334, 638, 699, 986),
    "lags_unguarded": (2, 3, 26, 58, 65, 73, 98),
    "tolerance_of_the_array": (1, 18, 24, 26, 58, 79, 98),
}
"""Cases of the fast path in which an error shows; found by trying."""
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


def found(seeds, dtype):
    """Seeds of cases with a row that is off by more than it may be."""
    cases = {seed: draw(seed, dtype, method="fast") for seed in seeds}
    return tuple(seed for seed, case in cases.items() if not max(excesses(case).values()) <= 1)


@pytest.mark.slow
@DTYPES
def test_without_an_error_nothing_is_found(dtype):
    assert found(sorted({seed for seeds in SEEDS.values() for seed in seeds}), dtype) == ()


@DTYPES
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_error_is_found_in_every_case_in_which_it_shows(fault, dtype, monkeypatch):
    seeds = SEEDS[fault.__name__]
    fault(monkeypatch)
    assert found(seeds, dtype) == seeds
