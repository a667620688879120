"""A decoder taught a distribution over tokens: loss and gradients are autograd's, and one token is the known case."""

import numpy as np
import pytest
from decoders import LLAMA, random_batch, random_decoder, torch_loss_and_gradients

from refattn.models import TokenDistribution


def drawn(shape, m, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 31, (*shape, m))
    tokens[0, 0, :2] = 5  # a token may come twice
    return TokenDistribution(tokens, rng.dirichlet(np.ones(m), shape))


def test_loss_and_gradients_are_autograds():
    pytest.importorskip("torch", reason="autograd is the second derivation")
    model, (tokens, _, weights) = random_decoder(LLAMA), random_batch()
    targets = drawn(tokens.shape, 6)
    every = np.zeros((*tokens.shape, 31))
    for place in np.ndindex(*tokens.shape):
        np.add.at(every[place], targets.tokens[place], targets.probabilities[place])
    loss, found = model.loss_and_gradients(tokens, targets, weights)
    expected_loss, expected = torch_loss_and_gradients(LLAMA, model.parameters, tokens, every, weights)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())


def test_a_distribution_that_is_one_token_is_that_token():
    model, (tokens, targets, weights) = random_decoder(LLAMA), random_batch()
    one = TokenDistribution(targets[..., None], np.ones((*targets.shape, 1)))
    loss, gradients = model.loss_and_gradients(tokens, targets, weights)
    of_one, same = model.loss_and_gradients(tokens, one, weights)
    assert of_one == loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(same[name], gradient)
    np.testing.assert_array_equal(model.evaluate(tokens, one, weights).right, model.evaluate(*random_batch()).right)


def test_a_mixture_has_the_mixture_of_the_losses():
    model, (tokens, targets, weights) = random_decoder(LLAMA), random_batch()
    targets, soft = np.maximum(targets, 0), drawn(tokens.shape, 4)
    losses = [model.loss(tokens, one, weights) for one in (targets, soft, soft.mixed_with(targets, 0.3))]
    assert losses[2] == pytest.approx(0.3 * losses[0] + 0.7 * losses[1], rel=1e-12)


def test_right_is_the_most_probable_token():
    model, (tokens, targets, _) = random_decoder(LLAMA), random_batch()
    targets = np.maximum(targets, 0)
    others = (targets + 1) % 31
    both = TokenDistribution(np.stack([others, targets], axis=-1), np.broadcast_to([0.4, 0.6], (*targets.shape, 2)))
    np.testing.assert_array_equal(model.evaluate(tokens, both).right, model.evaluate(tokens, targets).right)


@pytest.mark.parametrize(
    ("tokens", "probabilities", "error", "message"),
    [
        ([[[0.5]]], [[[1.0]]], TypeError, "tokens: dtype float64 came"),
        ([[[1, 2]]], [[[1.0]]], ValueError, r"shapes \(1, 1, 2\) and \(1, 1, 1\) came"),
        ([[[1, 2]]], [[[1.5, -0.5]]], ValueError, "probabilities: -0.5 came"),
        ([[[1, 2]]], [[[0.5, 0.4]]], ValueError, r"they sum to 0.9 at \(0, 0\)"),
        ([[[1, 2]]], [[[np.nan, 1.0]]], ValueError, "probabilities"),
    ],
)
def test_what_is_no_distribution_is_refused(tokens, probabilities, error, message):
    with pytest.raises(error, match=message):
        TokenDistribution(tokens, probabilities)


def test_a_distribution_that_does_not_fit_the_model_is_refused():
    model = random_decoder(LLAMA)
    with pytest.raises(ValueError, match=r"targets: 31 at index \(0, 1\) came, 0 … 30 was wanted"):
        model.loss([[1, 2]], TokenDistribution([[[1], [31]]], [[[1.0], [1.0]]]))
    with pytest.raises(ValueError, match=r"targets: shape \(1, 1\) came, that of the tokens \(1, 2\)"):
        model.loss([[1, 2]], TokenDistribution([[[1]]], [[[1.0]]]))
