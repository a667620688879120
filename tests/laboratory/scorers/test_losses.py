"""Losses of the scores: each is its definition, and its gradient is that of central differences."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import dense_attention
from refattn.laboratory.scorers import distillation, importance
from refattn.laboratory.scorers.distillation import distillation_loss
from refattn.laboratory.scorers.importance import LayerInputs, block_importance, importance_loss, ridge_scorer
from refattn.sparsek import sparsek_operator, sparsek_scores, sparsek_scores_backward, sparsek_scores_forward
from refattn.testing import GradientMismatchError, check_gradients

K, W = 3, 2
N, HEADS, KV, D = 24, 4, 2, 3


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    q, x = rng.standard_normal((HEADS, N, D)), rng.standard_normal((N, 5))
    k, v = rng.standard_normal((2, KV, N, D))
    return LayerInputs(x, q, k, v, dense_attention(q, k, v), rng.standard_normal((5, HEADS * D)))


def _scores(seed=1):
    return np.random.default_rng(seed).standard_normal((KV, N)) * 0.6


def _sparse_output(scores, layer, hard):
    """Every query by itself: the softmax of the selected and the window's pairs, weights times gates, normalised."""
    out = np.empty_like(layer.out)
    for head in range(HEADS):
        g = head // (HEADS // KV)
        for i in range(N):
            m = max(i - W + 1, 0)
            gates = np.ones(i + 1)
            if m:
                inside = sparsek_operator(scores[g, :m], K) if not hard else np.ones(m)
                chosen = np.argsort(-scores[g, :m], kind="stable")[:K]
                gates[:m] = 0
                gates[chosen] = inside[chosen]
            weights = gates * np.exp(layer.k[g, : i + 1] @ layer.q[head, i] / np.sqrt(D))
            out[head, i] = weights @ layer.v[g, : i + 1] / weights.sum()
    return out


@pytest.mark.parametrize("hard", [False, True])
def test_the_loss_is_the_relative_distance_after_the_projection(layer, hard):
    scores = _scores()
    sparse = _sparse_output(scores, layer, hard)
    rows = lambda out: np.concatenate(list(out), axis=1)[K + W :] @ layer.projection.T  # noqa: E731
    wanted = np.square(rows(sparse) - rows(layer.out)).sum() / np.square(rows(layer.out)).sum()
    found, _ = distillation_loss(scores, layer, n_select=K, window=W, hard=hard)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def _gradient_of(layer, loss=distillation_loss):
    x = layer.x

    def value(weight, slope):
        return np.array(loss(sparsek_scores(x, weight, slope), layer, n_select=K, window=W)[0])

    def gradients(upstream):
        weight, slope = np.random.default_rng(5).standard_normal((KV, 5)) * 0.4, np.array([0.01, -0.02])
        scores, cache = sparsek_scores_forward(x, weight, slope)
        pulled = sparsek_scores_backward(loss(scores, layer, n_select=K, window=W)[1] * upstream, cache)
        return {"weight": pulled.weight, "slope": pulled.slope}

    inputs = {"weight": np.random.default_rng(5).standard_normal((KV, 5)) * 0.4, "slope": np.array([0.01, -0.02])}
    return check_gradients(value, gradients, inputs, rtol=1e-5, step=1e-6)


def test_its_gradient_through_the_scorer_is_that_of_central_differences(layer):
    _gradient_of(layer)


def test_that_check_fails_on_a_gradient_that_is_off(layer, monkeypatch):
    right = distillation.sparsek_attention_backward

    def wrong(dout, cache):
        dout = dout.copy()
        dout[..., -1] = 0  # forgets that the weights are normalised
        return right(dout, cache)

    monkeypatch.setattr(distillation, "sparsek_attention_backward", wrong)
    with pytest.raises(GradientMismatchError):
        _gradient_of(layer)


def test_importance_is_the_squared_change_of_the_output_when_a_pair_alone_is_left_out(layer):
    importance, attention = block_importance(layer)
    assert importance.shape == attention.shape == (KV, 1, N)
    for g, j in ((0, 4), (1, 17)):
        wanted, mass = 0.0, 0.0
        for head in range(g * HEADS // KV, (g + 1) * HEADS // KV):
            projection = layer.projection[:, head * D : (head + 1) * D]
            for i in range(j, N):
                logits = layer.k[g, : i + 1] @ layer.q[head, i] / np.sqrt(D)
                weights = np.exp(logits) / np.exp(logits).sum()
                without = np.delete(weights, j) @ np.delete(layer.v[g, : i + 1], j, axis=0)
                if i > 0:
                    moved = projection @ (without / (1 - weights[j]) - layer.out[head, i])
                    wanted += np.square(moved * (1 - weights[j])).sum()
                mass += weights[j]
        np.testing.assert_allclose(importance[g, 0, j], wanted, rtol=1e-9)
        np.testing.assert_allclose(attention[g, 0, j], mass, rtol=1e-12)


def test_blocks_are_of_128_queries_and_float32_stays(layer):
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, 1, 300, D)).astype(np.float32)
    importance, attention = block_importance(
        LayerInputs(v[0], q, k, v, dense_attention(q, k, v), np.eye(D, dtype=np.float32))
    )
    assert importance.dtype == np.float32
    np.testing.assert_allclose(attention.sum(axis=-1), [[128, 128, 44]], rtol=1e-5)
    assert (importance >= 0).all()


def _importance():
    importance = np.random.default_rng(2).random((KV, 3, 300))
    importance[:, 0, 128:] = importance[:, 1, 256:] = 0
    return importance


def test_the_importance_loss_is_the_share_that_is_not_selected():
    importance, scores = _importance(), np.random.default_rng(4).standard_normal((KV, 300))
    lost = total = 0.0
    for g in range(KV):
        for block in (1, 2):
            m = block * 128 - W + 1
            gates = sparsek_operator(scores[g, :m], K)
            lost += importance[g, block, :m] @ (1 - gates)
            total += importance[g, block, :m].sum()
    found, _ = importance_loss(scores, importance, n_select=K, window=W)
    np.testing.assert_allclose(found, lost / total, rtol=1e-12)


def test_the_importance_loss_has_the_gradient_of_central_differences():
    importance = _importance()
    scores = np.random.default_rng(4).standard_normal((KV, 300)) * 0.3

    def value(scores):
        return np.array(importance_loss(scores, importance, n_select=K, window=W)[0])

    def gradients(upstream):
        return {"scores": importance_loss(scores, importance, n_select=K, window=W)[1] * upstream}

    check_gradients(value, gradients, {"scores": scores}, rtol=1e-4, step=1e-7)


def test_nothing_outside_the_window_is_no_loss():
    loss, gradient = importance_loss(np.zeros((1, 100)), np.ones((1, 1, 100)), n_select=K, window=W)
    assert loss == 0
    assert not gradient.any()


def test_ridge_regression_finds_a_linear_rule_and_ignores_a_constant_input():
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.standard_normal((1024, 3)), np.ones((1024, 1))], axis=1)
    rate = np.exp(x[:, 0] - 0.5 * x[:, 2] + 0.002 * np.arange(1024))
    attention = np.repeat(rate[None, None], importance.QUERIES // 16, axis=1)
    weight, slope = ridge_scorer([x, x], [attention, attention], window=1, penalty=1e-6)
    assert weight.dtype == slope.dtype == np.float32
    np.testing.assert_allclose(weight[0, :3], [1, 0, -0.5], atol=1e-3)
    np.testing.assert_allclose(slope, [0.002], atol=1e-5)
