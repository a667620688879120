"""The gradient checks themselves: they pass the truth, and fail on planted errors of every kind."""

import numpy as np
import pytest

from refattn.convbasis.training import loss_gradient_oracle
from refattn.testing import GradientMismatchError, check_gradients, check_jacobian, tolerance

RTOL = tolerance("differences").rtol
CHECKS = [check_gradients, check_jacobian]
POINT = {
    "x": np.random.default_rng(0).standard_normal((3, 4)),
    "y": np.random.default_rng(1).standard_normal((4, 2)),
}
both = pytest.mark.parametrize("check", CHECKS, ids=["directions", "jacobian"])


def product(x, y):
    return np.tanh(x) @ y


def gradients(upstream):
    x, y = POINT["x"], POINT["y"]
    return {"x": upstream @ y.T * (1 - np.tanh(x) ** 2), "y": np.tanh(x).T @ upstream}


def planted(name, change):
    """The right gradients, but for one input."""

    def wrong(upstream):
        right = gradients(upstream)
        return {**right, name: change(right[name])}

    return wrong


@both
def test_right_gradients_pass_and_their_errors_come_back(check):
    errors = check(product, gradients, POINT, rtol=RTOL)
    assert errors.keys() == {"x", "y"}
    assert max(errors.values()) < 1e-9


ERRORS = {
    "0.1 % off": lambda g: 1.001 * g,
    "sign": lambda g: -g,
    "zero": np.zeros_like,
    "integers": np.rint,
    "row rolled": lambda g: np.roll(g, 1, axis=0),
    "one entry 1 % off": lambda g: np.where(np.arange(g.size).reshape(g.shape) == np.abs(g).argmax(), 1.01 * g, g),
    "constant added": lambda g: g + 1e-3 * np.abs(g).max(),
}


@both
@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("error", list(ERRORS))
def test_a_wrong_gradient_is_named(error, name, check):
    with pytest.raises(GradientMismatchError, match=rf"^{name}, .*central differences.*above 1e-07$"):
        check(product, planted(name, ERRORS[error]), POINT, rtol=RTOL)


@both
def test_both_numbers_are_given(check):
    with pytest.raises(GradientMismatchError) as caught:
        check(lambda x: 3 * x, lambda g: {"x": 4 * g}, {"x": np.ones((1, 1))}, rtol=RTOL)
    claimed, measured = (float(part.split()[-1]) for part in str(caught.value).split(", relative")[0].split(", ")[-2:])
    assert claimed / measured == pytest.approx(4 / 3)
    assert "relative error 0.25 above" in str(caught.value)


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.ravel, r"gradient of shape \(12,\) for an input of \(3, 4\)"),
        (np.transpose, r"gradient of shape \(4, 3\) for an input of \(3, 4\)"),
        (lambda g: g[:1], r"gradient of shape \(1, 4\) for an input of \(3, 4\)"),
        (lambda g: g.sum(), r"gradient of shape \(\) for an input of \(3, 4\)"),
        (lambda g: np.where(np.eye(3, 4), np.nan, g), "gradient with 3 entries not finite"),
        (lambda g: np.where(np.eye(3, 4), np.inf, g), "gradient with 3 entries not finite"),
    ],
    ids=["flattened", "transposed", "cut", "summed", "nan", "inf"],
)
def test_a_gradient_of_the_wrong_shape_or_not_finite_is_refused(change, message, check):
    with pytest.raises(GradientMismatchError, match=r"^x: " + message):
        check(product, planted("x", change), POINT, rtol=RTOL)


@both
def test_a_missing_gradient_is_named(check):
    with pytest.raises(GradientMismatchError, match=r"^y: no gradient came, only those of x$"):
        check(product, lambda g: {"x": gradients(g)["x"]}, POINT, rtol=RTOL)


@both
@pytest.mark.parametrize("size", [1e-200, 1e-12, 1.0, 1e12, 1e200], ids=str)
def test_small_and_large_gradients_are_held_to_the_same_standard(size, check):
    check(lambda x: size * np.sin(x), lambda g: {"x": size * np.cos(POINT["x"]) * g}, {"x": POINT["x"]}, rtol=RTOL)
    with pytest.raises(GradientMismatchError, match=r"^x"):
        check(
            lambda x: size * np.sin(x),
            lambda g: {"x": 1.001 * size * np.cos(POINT["x"]) * g},
            {"x": POINT["x"]},
            rtol=RTOL,
        )


@both
def test_an_input_with_a_small_gradient_does_not_hide_behind_one_with_a_large(check):
    def mixed(x, y):
        return 1e6 * x @ y[:, :1] + 1e-6 * np.sin(y[:1, :1])

    def wrong(upstream):
        x, y = POINT["x"], POINT["y"]
        at_y = np.zeros_like(y)
        at_y[:, :1] = 1.001e6 * x.T @ upstream
        return {"x": 1e6 * upstream @ y[:, :1].T, "y": at_y}

    with pytest.raises(GradientMismatchError, match=r"^y"):
        check(mixed, wrong, POINT, rtol=RTOL)


@both
@pytest.mark.parametrize("size", [1e-6, 1e6], ids=str)
def test_the_step_follows_the_size_of_the_input(size, check):
    x = size * POINT["x"]
    check(lambda x: np.sin(x / size), lambda g: {"x": np.cos(x / size) / size * g}, {"x": x}, rtol=RTOL)


@both
def test_an_input_of_zeros_is_checked_too(check):
    zeros = {"x": np.zeros((2, 2))}
    check(lambda x: np.sin(x), lambda g: {"x": g}, zeros, rtol=RTOL)
    with pytest.raises(GradientMismatchError, match=r"^x"):
        check(lambda x: np.sin(x), lambda g: {"x": 1.001 * g}, zeros, rtol=RTOL)


@both
def test_a_gradient_that_is_rightly_zero_passes_and_a_wrong_one_does_not(check):
    check(lambda x: np.ones(3), lambda g: {"x": np.zeros(2)}, {"x": np.ones(2)}, rtol=RTOL)
    with pytest.raises(GradientMismatchError, match=r"^x"):
        check(lambda x: np.ones(3), lambda g: {"x": np.full(2, 1e-9)}, {"x": np.ones(2)}, rtol=RTOL)


SIZES = [1e-12, 1e-6, 1.0, 1e6, 1e12]


@both
@pytest.mark.parametrize("of_output", SIZES, ids="F={:g}".format)
@pytest.mark.parametrize("of_input", SIZES, ids="x={:g}".format)
def test_a_tenth_of_a_percent_is_seen_at_every_size_of_input_and_output(of_input, of_output, check):
    x = of_input * POINT["x"]

    def function(x):
        return of_output * np.sin(x / of_input)

    def gradients(factor):
        return lambda g: {"x": factor * of_output / of_input * np.cos(x / of_input) * g}

    check(function, gradients(1.0), {"x": x}, rtol=RTOL)
    for factor in (1.001, 0.0):
        with pytest.raises(GradientMismatchError, match=r"^x"):
            check(function, gradients(factor), {"x": x}, rtol=RTOL)


@both
@pytest.mark.parametrize("of_output", SIZES, ids="F={:g}".format)
@pytest.mark.parametrize("method", ["central", "complex-step"])
def test_rounding_is_not_an_error_where_the_true_gradient_is_zero_and_what_is_larger_is(method, of_output, check):
    """Softmax times equal values is one value, whatever the logits; on some machines it is so to the last bit."""
    x, values = POINT["x"], of_output * np.full((4, 2), 1 / 3)

    def function(x):
        weights = np.exp(x)
        return weights @ values / weights.sum(axis=1, keepdims=True)

    def gradient(size):
        return lambda g: {"x": size * of_output * np.ones(x.shape) * np.linalg.norm(g)}

    for rounding in (0.0, 1e-17, -1e-16):
        assert check(function, gradient(rounding), {"x": x}, rtol=RTOL, method=method)["x"] == 0
    with pytest.raises(GradientMismatchError, match=r"^x"):
        check(function, gradient(1e-9), {"x": x}, rtol=RTOL, method=method)


@pytest.mark.parametrize(
    ("check", "near"), [(check_gradients, 100), (check_jacobian, 1.01)], ids=["directions", "jacobian"]
)
def test_the_power_is_what_the_module_says(check, near):
    """With an input of size 2 and an output of size 3 an error of 5e-12 · 3/2 begins to be seen."""

    def gradient(error):
        return lambda g: {"x": np.full(1, error * g.sum())}

    def checked(error):
        return check(lambda x: np.full(1, 3.0), gradient(error), {"x": np.full(1, 2.0)}, rtol=RTOL)

    least = 1.5 * 32 * 2.0**-53 * 3 / (1e-3 * 2)
    assert least == pytest.approx(5e-12 * 3 / 2, rel=0.07)
    assert checked(least / near)["x"] == 0
    with pytest.raises(GradientMismatchError):
        checked(least * near)


@both
def test_a_small_gradient_beside_a_large_output_is_checked_as_far_as_differences_see(check):
    def gradients(factor):
        return lambda g: {"x": factor * 1e-6 * np.cos(POINT["x"]) * g}

    def function(x):
        return 1 + 1e-6 * np.sin(x)

    check(function, gradients(1.0), {"x": POINT["x"]}, rtol=RTOL)
    with pytest.raises(GradientMismatchError):
        check(function, gradients(1.001), {"x": POINT["x"]}, rtol=RTOL)


@both
def test_functions_may_return_their_own_arrays_again_and_write_to_the_upstream_gradient(check):
    x = POINT["x"]
    output, gradient = np.empty(x.shape), np.empty(x.shape)

    def function(x):
        return np.multiply(x, x, out=output)

    def gradients(factor):
        def pulled(upstream):
            upstream *= factor * 2 * x
            gradient[...] = upstream
            return {"x": gradient}

        return pulled

    check(function, gradients(1.0), {"x": x}, rtol=RTOL)
    for factor in (1.001, 0.0):
        with pytest.raises(GradientMismatchError, match=r"^x"):
            check(function, gradients(factor), {"x": x}, rtol=RTOL)


@both
def test_the_function_is_given_float64_and_has_to_return_it(check):
    seen = set()

    def function(x):
        seen.add(x.dtype)
        return np.sin(x)

    for dtype in (np.float16, np.float32, np.float64):
        x = POINT["x"].astype(dtype)
        at = np.cos(x.astype(np.float64))
        check(function, lambda g, at=at: {"x": at * g}, {"x": x}, rtol=RTOL)
    assert seen == {np.dtype(np.float64)}
    for dtype in (np.float32, np.longdouble, np.complex128, bool):
        with pytest.raises(TypeError, match=rf"^function: an output of {np.dtype(dtype)} came, float64 was wanted"):
            check(lambda x, dtype=dtype: x.astype(dtype), lambda g: {"x": g}, {"x": POINT["x"]}, rtol=RTOL)


@both
def test_a_function_that_returns_nan_never_passes(check):
    with pytest.raises(GradientMismatchError, match=r"^x.*central differences nan"):
        check(lambda x: x + np.nan, lambda g: {"x": g}, {"x": np.ones(2)}, rtol=RTOL)


@both
def test_the_point_is_never_written_to(check):
    before = {name: array.copy() for name, array in POINT.items()}
    for array in POINT.values():
        array.flags.writeable = False
    check(product, gradients, POINT, rtol=RTOL)
    for name, array in POINT.items():
        assert np.array_equal(array, before[name])


def test_the_difference_formula_is_of_fourth_order():
    def error(step):
        wide = {"x": np.array([0.7])}
        return check_jacobian(lambda x: np.exp(x), lambda g: {"x": np.exp(wide["x"]) * g}, wide, rtol=1.0, step=step)[
            "x"
        ]

    assert error(0.2) / error(0.1) == pytest.approx(16, rel=0.05)


def test_the_seed_decides_the_directions():
    def wrong(seed):
        with pytest.raises(GradientMismatchError) as caught:
            check_gradients(product, planted("x", ERRORS["sign"]), POINT, rtol=RTOL, seed=seed)
        return str(caught.value)

    assert wrong(0) == wrong(0)
    assert wrong(0) != wrong(1)


def test_a_complex_step_is_exact_to_rounding_and_sees_what_differences_cannot():
    """An error of 1e-12 passes central differences and not the complex step."""
    x = np.array([[0.3, -1.2], [0.7, 2.0]])

    def gradients(factor):
        return lambda g: {"x": factor * np.cos(x) * np.exp(np.sin(x)) * g}

    def function(x):
        return np.exp(np.sin(x))

    for check in (check_gradients, check_jacobian):
        assert check(function, gradients(1.0), {"x": x}, rtol=1e-14, method="complex-step")["x"] < 1e-14
        check(function, gradients(1 + 1e-12), {"x": x}, rtol=1e-9)
        with pytest.raises(GradientMismatchError, match="a complex step"):
            check(function, gradients(1 + 1e-12), {"x": x}, rtol=1e-14, method="complex-step")


def test_a_complex_step_through_a_real_function_is_refused():
    x = np.array([0.3])
    with pytest.raises(TypeError, match="function: an output of float64 came, complex128 was wanted"):
        check_gradients(lambda x: np.abs(x), lambda g: {"x": g}, {"x": x}, rtol=1e-9, method="complex-step")
    with pytest.raises(ValueError, match="method: 'forward' came, one of 'central', 'complex-step'"):
        check_gradients(lambda x: x, lambda g: {"x": g}, {"x": x}, rtol=1e-9, method="forward")


def test_the_training_loss_passes_a_complex_step():
    """The loss of section 5, softmax without its maximum, which is not analytic."""
    rng = np.random.default_rng(0)
    A1, A2, A3, E = rng.standard_normal((4, 8, 3))
    X, W = rng.standard_normal((2, 3, 3))

    def loss(X, W):
        f = np.tril(np.exp(A1 @ X @ A2.T))
        c = (f / f.sum(axis=1, keepdims=True)) @ A3 @ W - E
        return np.array([0.5 * np.sum(c * c)])

    found = loss_gradient_oracle(A1, A2, A3, X, W, E)
    gradients = {"X": found.X, "W": found.W}
    check_gradients(
        loss,
        lambda g: {name: g[0] * value for name, value in gradients.items()},
        {"X": X, "W": W},
        rtol=1e-12,
        method="complex-step",
    )
