"""The error measures: what they measure, and that nothing slips under them."""

import numpy as np
import pytest

from refattn.testing import relative_error, row_errors

RIGHT = np.random.default_rng(0).standard_normal((2, 5, 3))
both = pytest.mark.parametrize("measure", [row_errors, relative_error], ids=["rows", "norm"])


@both
def test_equal_arrays_have_no_error(measure):
    assert np.all(measure(RIGHT, RIGHT) == 0)


@both
@pytest.mark.parametrize("size", [1e-300, 1e-200, 1.0, 1e200, 1e300], ids=str)
def test_the_error_is_relative_at_every_size(measure, size):
    np.testing.assert_allclose(measure(1.001 * (size * RIGHT), size * RIGHT), 1e-3, rtol=1e-9)


def test_one_lost_row_shows_among_large_ones():
    reference = np.array([[1e6, 1e6], [1e-6, 0.0]])
    errors = row_errors([[1e6, 1e6], [0.0, 0.0]], reference)
    assert errors.tolist() == [0.0, 1.0]


def test_a_rows_error_is_its_largest_difference_over_its_largest_entry():
    errors = row_errors(RIGHT + 0.5, RIGHT)
    assert errors.shape == (2, 5)
    np.testing.assert_allclose(errors, 0.5 / np.abs(RIGHT).max(axis=-1), rtol=1e-12)


def test_the_norms_error_is_that_of_the_whole():
    assert relative_error([[3.0, 4.0], [0.0, 1.0]], [[3.0, 4.0], [0.0, 0.0]]) == pytest.approx(1 / 5, rel=1e-15)


def test_against_zeros_the_error_is_absolute():
    assert row_errors([[0.25, 0.0]], [[0.0, 0.0]]).tolist() == [0.25]
    assert relative_error([3.0, 4.0], [0.0, 0.0]) == 5.0
    assert relative_error(np.zeros((2, 0)), np.zeros((2, 0))) == 0.0


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("side", ["result", "reference", "both"])
def test_nan_and_infinity_never_pass(measure, bad, side):
    spoilt = RIGHT.copy()
    spoilt[1, 2, 0] = bad
    error = measure(RIGHT if side == "reference" else spoilt, RIGHT if side == "result" else spoilt)
    assert np.max(error) == np.inf


def test_a_bad_row_leaves_the_others_alone():
    spoilt = RIGHT.copy()
    spoilt[1, 2, 0] = np.nan
    assert np.isinf(row_errors(spoilt, RIGHT)).sum() == 1


@both
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 1), (1, 5, 3), ()], ids=str)
def test_shapes_that_only_broadcast_are_refused(measure, shape):
    with pytest.raises(ValueError, match=r"^result: shape \(.*\) came, the reference's \(2, 5, 3\) was wanted"):
        measure(np.ones(shape), RIGHT)


def test_rows_need_two_axes():
    with pytest.raises(ValueError, match=r"^result: shape \(3,\) came, \(…, n, d\) was wanted"):
        row_errors(np.ones(3), np.ones(3))


def test_float32_is_compared_in_float64():
    assert relative_error(np.float32(RIGHT), RIGHT) == pytest.approx(3e-8, rel=1)
    assert row_errors(np.float32(RIGHT), RIGHT).dtype == np.float64
