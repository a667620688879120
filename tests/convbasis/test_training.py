"""The training loss and its gradients: differences for the oracle, the oracle for the paper's form."""

import numpy as np
import pytest

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn.convbasis.training import loss_gradient_oracle, loss_gradient_paper
from refattn.testing import check_gradients, relative_error, rope_structured, tolerance

NAMES = ("A1", "A2", "A3", "X", "W")


def arguments(n=20, d=3, d_v=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"A1": (n, d), "A2": (n, d), "A3": (n, d), "X": (d, d), "W": (d, d_v), "E": (n, d_v)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def structured_arguments(n, d, terms, seed):
    """Arguments whose logits ``A1 X A2ᵀ`` are exactly k-conv: X is a multiple of the identity."""
    q, k, v, _ = rope_structured(n, d, starts=terms, seed=seed)
    rng = np.random.default_rng(seed)
    return {"A1": q, "A2": k, "A3": v, "X": np.eye(d) / np.sqrt(d), "W": rng.standard_normal((d, d)), "E": v}


def test_oracle_gradients_pass_central_differences():
    given = arguments()
    found = loss_gradient_oracle(**given)
    target = given.pop("E")
    check_gradients(
        lambda **kw: np.array([loss_gradient_oracle(E=target, **kw).loss]),
        lambda g: {name: g[0] * getattr(found, name) for name in NAMES},
        given,
        rtol=tolerance("differences").rtol,
        step=3e-4,
    )


def test_oracle_is_the_chain_rule_through_exact_attention():
    given = arguments(seed=1)
    A1, A2, A3, X, W, E = (given[name] for name in (*NAMES[:3], "X", "W", "E"))
    found = loss_gradient_oracle(**given)
    out, cache = dense_attention_forward(A1 @ X, A2, A3 @ W, scale=1.0)
    assert found.loss == pytest.approx(0.5 * np.sum((out - E) ** 2), rel=1e-13)
    gradients = dense_attention_backward(out - E, cache)
    expected = {
        "A1": gradients.q @ X.T,
        "X": A1.T @ gradients.q,
        "A2": gradients.k,
        "A3": gradients.v @ W.T,
        "W": A3.T @ gradients.v,
    }
    for name, value in expected.items():
        assert relative_error(getattr(found, name), value) < 1e-12, name


def test_through_the_product_of_the_weights():
    """X = W_Q W_Kᵀ: dW_Q = dX W_K and dW_K = dXᵀ W_Q."""
    given = arguments(seed=2)
    rng = np.random.default_rng(2)
    weights = {"W_Q": rng.standard_normal((3, 2)), "W_K": rng.standard_normal((3, 2))}
    rest = {name: given[name] for name in ("A1", "A2", "A3", "W", "E")}
    dX = loss_gradient_oracle(X=weights["W_Q"] @ weights["W_K"].T, **rest).X
    check_gradients(
        lambda W_Q, W_K: np.array([loss_gradient_oracle(X=W_Q @ W_K.T, **rest).loss]),
        lambda g: {"W_Q": g[0] * dX @ weights["W_K"], "W_K": g[0] * dX.T @ weights["W_Q"]},
        weights,
        rtol=tolerance("differences").rtol,
        step=3e-4,
    )


def test_paper_equals_oracle_with_as_many_terms_as_columns():
    given = arguments(n=33, seed=3)
    oracle = loss_gradient_oracle(**given)
    paper = loss_gradient_paper(**given, n_basis=33, probe=1, delta=0)
    for name in ("loss", *NAMES):
        assert relative_error(getattr(paper, name), getattr(oracle, name)) < 1e-10, name


@pytest.mark.parametrize("terms", [1, 4, 17], ids="k={}".format)
def test_paper_equals_oracle_on_structured_inputs(terms):
    given = structured_arguments(150, 4, terms, seed=terms)
    oracle = loss_gradient_oracle(**given)
    paper = loss_gradient_paper(**given, n_basis=terms, probe=1, delta=1e-9)
    for name in ("loss", *NAMES):
        assert relative_error(getattr(paper, name), getattr(oracle, name)) < 1e-10, name


def test_the_loss_is_that_of_exact_attention_on_structured_inputs():
    given = structured_arguments(100, 4, 3, seed=9)
    out = dense_attention(given["A1"] @ given["X"], given["A2"], given["A3"] @ given["W"], scale=1.0)
    expected = 0.5 * np.sum((out - given["E"]) ** 2)
    assert loss_gradient_paper(**given, n_basis=3, probe=1, delta=1e-9).loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("A2", (19, 3)), ("A3", (20, 2)), ("X", (3, 2)), ("W", (2, 4)), ("E", (20, 5)), ("A1", (20,))],
    ids=lambda x: str(x),
)
@pytest.mark.parametrize("function", [loss_gradient_oracle, loss_gradient_paper], ids=["oracle", "paper"])
def test_shapes_that_do_not_fit_are_named(function, name, shape):
    given = {**arguments(), name: np.ones(shape)}
    options = {} if function is loss_gradient_oracle else {"n_basis": 2, "probe": 1, "delta": 0}
    with pytest.raises(ValueError, match=rf"{name}: shape"):
        function(**given, **options)
