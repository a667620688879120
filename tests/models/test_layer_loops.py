"""Compiled loops of the layers look at no bounds: what does not fit is refused before, and any width comes right."""

import numpy as np
import pytest

from refattn._threads import threads
from refattn.models.layers import (
    cross_entropy_forward,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
    swiglu_backward,
    swiglu_forward,
)

ONES = np.ones((2, 3))
GAIN = np.ones(3)
MISFITS = {
    "up": lambda: swiglu_forward(ONES, np.ones((2, 2))),
    "open": lambda: swiglu_backward(ONES, swiglu_forward(ONES, ONES)[1]._replace(open=ONES[:1])),
    "dout": lambda: rms_norm_backward(np.ones((2, 4)), rms_norm_forward(ONES, GAIN, 0.0)[1]),
    "gain": lambda: rms_norm_forward(ONES, GAIN[:1], 0.0),
    "shift": lambda: layer_norm_forward(ONES, GAIN, GAIN[:2], 0.0),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name):
    with pytest.raises(ValueError, match=rf"{name}: shape \(.*\) came, \(.*\) was wanted"):
        MISFITS[name]()


def test_whole_numbers_are_refused():
    with pytest.raises(TypeError, match="x: int64 came, float32 or float64 was wanted"):
        rms_norm_forward(np.ones((2, 3), np.int64), GAIN, 0.0)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 64, 67])
def test_norms_and_the_cross_entropy_are_their_definitions_at_any_width(width):
    x, gain, shift = np.random.default_rng(width).standard_normal((3, 5, width))
    gain, shift, centred = gain[0], shift[0], x - x.mean(axis=-1, keepdims=True)
    size = np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.1)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(rms_norm_forward(x, gain, 0.1)[0], x / size * gain, rtol=1e-13)
    np.testing.assert_allclose(
        layer_norm_forward(x, gain, shift, 0.1)[0], centred / deviation * gain + shift, rtol=1e-12, atol=1e-14
    )
    losses, cache = cross_entropy_forward(x, np.zeros(5, int))
    np.testing.assert_allclose(losses, np.log(np.exp(x).sum(axis=-1)) - x[:, 0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(cache.probabilities.sum(axis=-1), 1, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_threads_and_any_layout_give_the_same_bits(dtype):
    x, y, dout = np.random.default_rng(0).standard_normal((3, 2100, 192)).astype(dtype)  # four blocks of rows
    gain = y[0]

    def computed(x, y, dout):
        return (
            *rms_norm_backward(dout, rms_norm_forward(x, gain, 1e-5)[1])[:2],
            *layer_norm_backward(dout, layer_norm_forward(x, gain, gain, 1e-5)[1]),
            *swiglu_backward(dout, swiglu_forward(x, y)[1]),
            cross_entropy_forward(x, np.zeros(len(x), int))[0],
        )

    with threads(1):
        right = computed(x, y, dout)
    with threads(3):
        found = computed(*(np.asfortranarray(array) for array in (x, y, dout)))
    for one, other in zip(right, found, strict=True):
        np.testing.assert_array_equal(one, other)
