"""Products of the models' linear maps: BLAS's product, the same bits for any number of threads, ours and BLAS's."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from refattn._threads import threads
from refattn.models.layers import linear_backward, linear_forward
from refattn.models.layers.products import _BLOCKS, _ROWS, _blocks, products

SHAPES = [(1, 1, 1), (1, 576, 1536), (3, 64, 7), (63, 300, 900), (1000, 256, 300), (2049, 130, 257)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_bits_of_one(shape, dtype):
    rows, inner, columns = shape
    rng = np.random.default_rng(rows)
    a, b = rng.standard_normal((rows, inner)).astype(dtype), rng.standard_normal((columns, inner)).astype(dtype)

    def computed():
        out, cache = linear_forward(a, b)
        return (out, *linear_backward(out, cache)[:2])

    with threads(1), threadpool_limits(1):
        right = computed()
    for count, of_blas in ((2, 1), (3, 2), (1, 2)):
        with threads(count), threadpool_limits(of_blas):
            for one, other in zip(right, computed(), strict=True):
                np.testing.assert_array_equal(one, other)
    wide, eps = a.astype(np.float64) @ b.T.astype(np.float64), 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(right[0], wide, rtol=0, atol=eps * np.sqrt(inner))
    np.testing.assert_allclose(right[2], wide.T @ a, rtol=0, atol=eps * rows * np.sqrt(inner) * np.abs(wide).max())


@pytest.mark.parametrize("rows", [1, 63, 64, 129, 1000, 5001])
@pytest.mark.parametrize("work", [1, 1 << 12, 1 << 18, 1 << 30])
def test_blocks_are_all_the_rows_in_their_order_and_not_too_small(rows, work):
    found = _blocks(rows, work)
    assert [place for block in found for place in range(rows)[block]] == list(range(rows))
    assert len(found) <= _BLOCKS
    assert len(found) == 1 or min(len(range(rows)[block]) for block in found[:-1]) >= _ROWS


def test_pairs_are_multiplied_in_their_order_whatever_their_layout():
    a, b = np.random.default_rng(0).standard_normal((2, 500, 400))
    one, other = products((a, b.T), (np.asfortranarray(a).T, b))
    np.testing.assert_allclose(one, a @ b.T, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(other, a.T @ b, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("weight", [np.ones(3), np.ones((2, 2)), np.ones((1, 2, 3))])
def test_a_map_of_other_rows_is_named(weight):
    with pytest.raises(ValueError, match=r"x, weight: shapes \(4, 3\), \(.*\) came"):
        linear_forward(np.ones((4, 3)), weight)
    with pytest.raises(ValueError, match=r"x, weight: shapes \(\), \(2, 3\) came"):
        linear_forward(1.0, np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(4, 3), (3, 2), (2, 2, 2), (4,)])
def test_a_gradient_of_another_shape_is_named(shape):
    _, cache = linear_forward(np.ones((4, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"dout: shape \(.*\) came, \(4, 2\) was wanted"):
        linear_backward(np.ones(shape), cache)


def test_no_rows_give_no_rows_and_a_gradient_of_zero():
    out, cache = linear_forward(np.empty((0, 3)), np.ones((2, 3)))
    found = linear_backward(out, cache)
    assert (out.shape, found.x.shape) == ((0, 2), (0, 3))
    assert not found.weight.any()


def test_what_overflows_is_infinite_and_says_nothing():
    big = np.full((200, 300), 1e30, np.float32)
    assert np.isinf(linear_forward(big, big)[0]).all()
