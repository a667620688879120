"""Adam and the training of a scorer: the steps of the paper, and a run that was stopped ends like one that was not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from refattn.laboratory.scorers.adam import BETA_1, BETA_2, EPSILON, AdamState, cosine_rate
from refattn.laboratory.scorers.importance import importance_loss
from refattn.laboratory.scorers.training import Stage, input_units, read_checkpoint, train

N, WIDTH, HEADS = 300, 6, 2


def test_adam_takes_the_steps_of_its_definition():
    gradients = np.random.default_rng(0).standard_normal((5, 3))
    state, theta = AdamState.start(np.ones(3)), np.ones(3)
    for t, gradient in enumerate(gradients, 1):
        state = state.stepped(gradient, 0.1)
        mean = sum((1 - BETA_1) * BETA_1 ** (t - s) * gradients[s - 1] for s in range(1, t + 1))
        square = sum((1 - BETA_2) * BETA_2 ** (t - s) * gradients[s - 1] ** 2 for s in range(1, t + 1))
        theta = theta - 0.1 * (mean / (1 - BETA_1**t)) / (np.sqrt(square / (1 - BETA_2**t)) + EPSILON)
        np.testing.assert_allclose(state.parameters, theta, rtol=1e-12)
    assert state.step == 5


def test_the_rate_falls_along_half_a_cosine():
    rates = [cosine_rate(step, 100, 0.3) for step in range(100)]
    assert rates[0] == 0.3
    assert all(later < earlier for earlier, later in pairwise(rates))
    np.testing.assert_allclose(rates[50], 0.15)


def _problem():
    rng = np.random.default_rng(1)
    inputs = list(rng.standard_normal((4, N, WIDTH)).astype(np.float32))
    hidden = rng.standard_normal((HEADS, WIDTH))
    importance = [np.exp(2 * hidden @ x.T)[:, None] * np.ones((1, 3, 1)) for x in inputs]
    loss = lambda window, scores: importance_loss(scores, importance[window], n_select=10, window=5)  # noqa: E731
    return inputs, [(Stage("first", 6, 2, 0.1), loss), (Stage("second", 4, 1, 0.02), loss)]


def _run(path=None, on_pass=None, seed=(0,)):
    inputs, stages = _problem()
    start = np.zeros((HEADS, WIDTH), np.float32), np.zeros(HEADS, np.float32)
    return train(inputs, stages, *start, seed=list(seed), checkpoint=path, on_pass=on_pass)


@pytest.fixture(scope="module")
def undisturbed():
    """What a run gives that nobody stops."""
    return _run()


def test_the_loss_goes_down(undisturbed):
    weight, slope, state = undisturbed
    assert weight.dtype == slope.dtype == np.float32
    assert state.losses.shape == (10,)
    assert state.losses[-1] < 0.5 * state.losses[0]


@pytest.mark.parametrize("stop", [1, 5, 6, 9])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, undisturbed, stop):
    path = tmp_path / "checkpoint.npz"

    class StopError(Exception):
        pass

    def on_pass(state):
        if len(state.losses) == stop:
            raise StopError

    with pytest.raises(StopError):
        _run(path, on_pass)
    resumed = _run(path)
    for one, other in zip(resumed[:2], undisturbed[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(resumed[2].losses, undisturbed[2].losses)


def test_another_seed_is_another_run_and_its_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.npz"
    first = _run(path)[0]
    assert not np.array_equal(first, _run(seed=(1,))[0])
    with pytest.raises(ValueError, match="checkpoint of another training"):
        _run(path, seed=(1,))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.npz"
    _run(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="checkpoint"):
        read_checkpoint(path, "key")


def test_the_first_token_does_not_set_the_units():
    x = np.ones((50, 2))
    x[0] = 1e6
    np.testing.assert_allclose(input_units([x]).inputs, [1, 1])
