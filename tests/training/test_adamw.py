"""AdamW takes PyTorch's steps, and refuses what does not fit before it has changed anything."""

import numpy as np
import pytest

from refattn.training import AdamW

SHAPES = {"matrix": (5, 7), "gain": (7,), "large": (300, 200), "point": ()}


def drawn(rng, dtype):
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_the_steps_are_pytorchs(dtype):
    import torch

    rng = np.random.default_rng(0)
    parameters = drawn(rng, dtype)
    theirs = {name: torch.tensor(array) for name, array in parameters.items()}
    options = {"betas": (0.8, 0.95), "eps": 1e-6}
    groups = [
        {"params": [theirs[name] for name in ("matrix", "large")], "weight_decay": 0.3},
        {"params": [theirs[name] for name in ("gain", "point")], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=1.0, **options)
    ours = AdamW(parameters, beta_1=0.8, beta_2=0.95, epsilon=1e-6, weight_decay=0.3)
    for step in range(20):
        gradients, rate = drawn(rng, dtype), 0.1 / (1 + step)
        ours.step(parameters, gradients, rate)
        for group in peer.param_groups:
            group["lr"] = rate
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(gradients[name])
        peer.step()
    tolerance = 1e-13 if dtype == np.float64 else 2e-5
    for name, tensor in theirs.items():
        np.testing.assert_allclose(parameters[name], tensor.numpy(), rtol=tolerance, atol=tolerance)
        assert parameters[name].dtype == dtype


def test_the_first_step_is_as_long_as_the_rate_whatever_the_gradient():
    parameters = {"x": np.zeros(3)}
    AdamW(parameters).step(parameters, {"x": np.array([1e-3, -5.0, 1e4])}, rate=0.1)
    np.testing.assert_allclose(parameters["x"], [-0.1, 0.1, -0.1], rtol=1e-4)


def test_only_parameters_of_two_axes_decay():
    parameters = {"matrix": np.ones((2, 2)), "gain": np.ones(2)}
    AdamW(parameters, weight_decay=0.5).step(parameters, {name: 0 * x for name, x in parameters.items()}, rate=0.1)
    np.testing.assert_array_equal(parameters["matrix"], np.full((2, 2), 0.95))
    np.testing.assert_array_equal(parameters["gain"], np.ones(2))


def test_what_is_not_trained_stays():
    parameters = {"trained": np.ones(2), "frozen": np.ones(2)}
    optimizer = AdamW({"trained": parameters["trained"]})
    optimizer.step(parameters, {"trained": np.ones(2)}, rate=0.1)
    assert (parameters["frozen"] == 1).all()
    assert (parameters["trained"] < 1).all()


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"x": np.ones((2, 2))}, "gradients: 'y' is missing"),
        ({"x": np.ones((2, 2)), "y": np.ones(3), "z": np.ones(1)}, "gradients: 'z' came"),
        ({"x": np.ones((2, 3)), "y": np.ones(3)}, r"gradients: 'x' of shape \(2, 3\)"),
        ({"x": np.ones((2, 2), np.float32), "y": np.ones(3)}, "dtype float32 came"),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_gradients_that_do_not_fit_are_named_and_change_nothing(gradients, message):
    parameters = {"x": np.ones((2, 2)), "y": np.ones(3)}
    optimizer = AdamW(parameters)
    with pytest.raises(ValueError, match=message):
        optimizer.step(parameters, gradients, rate=0.1)
    assert optimizer.steps == 0
    assert all((x == 1).all() for x in parameters.values())


def test_a_parameter_that_could_not_be_written_to_is_refused():
    optimizer = AdamW({"x": np.ones((3, 2))})
    with pytest.raises(ValueError, match="'x' came, writable and row by row"):
        optimizer.step({"x": np.ones((2, 3)).T}, {"x": np.ones((3, 2))}, rate=0.1)
    with pytest.raises(TypeError, match="'x' is int64"):
        AdamW({"x": np.ones(3, np.int64)})
    for wrong in ({"beta_1": 1.0}, {"beta_2": -0.1}, {"epsilon": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AdamW({}, **wrong)
