"""The figure of error against k: its settings are what they are called, its baselines and counts are known."""

import numpy as np
import pytest

from refattn import dense_attention
from refattn.experiments.conv import figure, figure_long, operations
from refattn.experiments.conv.figure_setting import as_factor, positions_of, running_mean
from refattn.testing import attention_inputs, relative_error, rope_structured


def test_a_scale_is_a_name_or_a_number():
    assert [as_factor(scale, 16) for scale in ("1/sqrt(d)", "1/d", 2, 0.5)] == [0.25, 0.0625, 2.0, 0.5]


@pytest.mark.parametrize("scale", ["1/n", "0.5", None, True, float("nan"), [1.0]])
def test_a_scale_that_is_neither_is_refused(scale):
    with pytest.raises((TypeError, ValueError), match=r"scale: .* came"):
        as_factor(scale, 16)


def test_positions_are_refused_by_name():
    with pytest.raises(ValueError, match="positions: 'random' came"):
        positions_of("random", 4)


def test_the_running_mean_is_attention_with_equal_logits():
    _, _, v = attention_inputs(50, 4, seed=0)
    nothing = np.zeros((50, 1))
    np.testing.assert_allclose(running_mean(v), dense_attention(nothing, nothing, v), rtol=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_a_window_takes_no_more_operations_than_it_is_given(share):
    n, d = 300, 8
    given = round(share * operations.exact_attention(n, d))
    width = operations.equal_window(given, n, d)

    def cost(width):
        return sum(min(row + 1, width) for row in range(n)) * (4 * d + 2) + n * d

    assert cost(width) <= given < cost(width + 1)


@pytest.mark.parametrize("scale", ["1/sqrt(d)", "1/d", 0.3])
def test_every_method_is_exact_where_it_has_to_be(scale):
    n, starts = 96, [0, 24, 48, 72]
    q, k, v, _ = rope_structured(n, 8, starts=starts, seed=0)
    records = figure.measured([(q, k, v)], scale, {"uniform": [2, 4], "best": [4], "first": [n], "recover": [n]}, [5])
    found = {(one["method"], one["k"]): one for one in records}
    assert all(found[key]["row_worst"] < 1e-6 for key in (("uniform", 4), ("best", 4), ("first", n)))
    assert found["uniform", 2]["error"] > 1e-3
    assert found["recover", n]["size"] <= n
    assert found["mean", 0]["error"] > 1e-3
    exact = dense_attention(q, k, v, scale=as_factor(scale, 8))
    assert found["mean", 0]["error"] == pytest.approx(relative_error(running_mean(v), exact), rel=1e-3)


def test_a_window_of_everything_is_exact_attention_at_any_scale():
    q, k, v = attention_inputs(40, 4, seed=1)
    (one,) = figure.windows(q, k, v, 0.7, [40])
    assert one.size == 40
    np.testing.assert_allclose(one.out, dense_attention(q, k, v, scale=0.7), rtol=1e-9)


@pytest.mark.parametrize("experiment", [figure.EXPERIMENT, figure_long.EXPERIMENT], ids=lambda one: one.name)
def test_a_length_beyond_memory_is_refused_with_the_estimate(experiment):
    (item, *_) = experiment.items([10**10])
    with pytest.raises(MemoryError, match=r"n = 10000000000: about .* of memory would be needed"):
        experiment.run(item)


def test_the_grid_has_every_setting():
    found = figure.items([1024])
    assert len(found) == 3 * 30 * 2
    assert {(one["probe"], one["delta"], one["eps"]) for one in found} == {(1, 1e-9, 0.0)}
    long = figure_long.items([8192, 32_000])
    assert [(one["n"], one["positions"]) for one in long[::2]] == [(8192, "zero"), (8192, "rotary"), (32_000, "zero")]
