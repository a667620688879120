"""What is timed is attention: every method's call computes it, or its gradients."""

import time

import numpy as np
import pytest

from refattn import dense_attention
from refattn.experiments.compared import time_against_n
from refattn.testing import relative_error, rope_structured


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("method", ["exact", "conv", "paper", "torch"])
def test_the_timed_calls_compute_attention(method, training):
    if method == "torch":
        pytest.importorskip("torch", reason="needs the extra 'peers'")
    n = 128
    q, k, v, _ = rope_structured(n, time_against_n.WIDTH, starts=n * np.arange(16) // 16, seed=0)
    result = time_against_n.METHODS[method][0](q, k, v, training)()
    if training:
        assert [np.asarray(gradient).squeeze().shape for gradient in result] == [(n, 64)] * 3
    else:
        out = np.asarray(result).squeeze()
        assert relative_error(out, dense_attention(q, k, v)) < 1e-10


@pytest.mark.slow
def test_every_method_is_timed():
    items = time_against_n.items([64])
    assert {item["method"] for item in items} == set(time_against_n.METHODS)
    for item in items:
        if item["method"] in ("low rank", "SparseK"):
            begun = time.perf_counter()
            (record,) = time_against_n.run(item)
            assert 0 < record["seconds"] < time.perf_counter() - begun
