"""What is beyond the numbers of a narrower dtype is refused, by one message, wherever numbers are cast to it."""

import re

import numpy as np
import pytest

from refattn import ConvBasis, conv_attention, conv_attention_backward, conv_attention_forward
from refattn._validation import cast
from refattn.models import Encoder, EncoderConfig, Llama, LlamaConfig

N = 6
Q, K, V = np.random.default_rng(0).standard_normal((3, N, 4)).astype(np.float32)
MOST = float(np.finfo(np.float32).max)
LLAMA = LlamaConfig(
    n_layers=1, width=4, ffn_width=4, vocab_size=5, n_heads=2, n_kv_heads=1, head_width=2, context_length=9,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip
ENCODER = EncoderConfig(1, 4, 4, 2, 5, 9, 1e-12)


def one_entry(shape, value):
    array = np.zeros(shape)
    array.flat[0] = value
    return array


def in_a_basis(value):
    return conv_attention(Q, K, V, basis=ConvBasis([0], one_entry((1, N), value)))


def in_a_pair_of_bases(value):
    lower, upper = ConvBasis([0], np.zeros((1, N))), ConvBasis([0], one_entry((1, N), value))
    return conv_attention(Q, K, V, basis=(lower, upper), mask="full")


def in_an_upstream_gradient(value):
    _, cache = conv_attention_forward(Q, K, V, n_basis=2, probe=1, delta=1e-3)
    return conv_attention_backward(one_entry(V.shape, value), cache)


def in_a_shift(value):
    return ConvBasis([0], np.zeros((1, N), np.float32)).exp_transform(value)


def weights(config, name, value):
    return {x: one_entry(shape, value) if x == name else np.ones(shape) for x, shape in config.tensor_shapes().items()}


def in_weights_of_a_decoder(value):
    return Llama(LLAMA, weights(LLAMA, "output_norm.weight", value))


def in_weights_of_an_encoder(value):
    return Encoder(ENCODER, weights(ENCODER, "embeddings.LayerNorm.weight", value))


def in_an_attention(value):
    model = Llama(LLAMA, weights(LLAMA, "", 0.0))
    return model([1, 2], lambda layer, q, k, v: one_entry(q.shape, value))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        pytest.param(in_a_basis, "basis", id="basis"),
        pytest.param(in_a_pair_of_bases, "basis", id="pair of bases"),
        pytest.param(in_an_upstream_gradient, "dout", id="upstream gradient"),
        pytest.param(in_a_shift, "shift", id="shift"),
        pytest.param(in_weights_of_a_decoder, "output_norm.weight", id="decoder"),
        pytest.param(in_weights_of_an_encoder, "embeddings.LayerNorm.weight", id="encoder"),
        pytest.param(in_an_attention, "attention", id="attention"),
    ],
)
@pytest.mark.parametrize("value", [1e39, -1e39], ids="{:g}".format)
def test_a_number_beyond_float32_is_refused_whatever_its_sign(call, name, value):
    told = f"{name}: {value} at index "
    wanted = r" came in float64, numbers of at most 3\.4028235e\+38 in size were wanted: the computation is in float32$"
    with pytest.raises(ValueError, match="^" + re.escape(told) + r"\(.*\)" + wanted):
        call(value)


@pytest.mark.parametrize("value", [MOST, -MOST], ids=["largest", "least"])
def test_the_edge_itself_is_a_number(value):
    assert cast("x", np.array([value]), np.float32)[0] == np.float32(value)


def test_an_infinity_stays_one():
    """A mask may hold −∞; what judges finite numbers is another check."""
    assert cast("mask", np.array([-np.inf]), np.float32)[0] == -np.inf


def test_numbers_that_fit_are_rounded_and_those_of_the_dtype_are_not_copied():
    wide = np.array([0.1, 1e-50])
    np.testing.assert_array_equal(cast("x", wide, np.float32), wide.astype(np.float32))
    assert cast("x", wide, np.float64) is wide
