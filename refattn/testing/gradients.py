"""Gradient checks by central differences or a complex step (ours).

With ``method="central"`` the derivative along a direction u is taken from four evaluations,
``(8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h``, whose error is O(h⁴). With ``"complex-step"`` it is
``Im f(x + ihu)/h`` with a tiny h, exact to rounding, for functions that take complex arrays and have no absolute value,
maximum or sort in them. What is compared is ``⟨upstream, df(u)⟩`` with ``⟨gradient, u⟩``, each input alone; the error
is relative to the size such a product has for a random direction, ``‖gradient‖ ‖u‖ / √size``, so a small gradient is
held to the same standard as a large one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refattn._validation import FloatArray, as_count, as_option, as_real, as_real_array, require_finite

METHODS = {"central": "central differences", "complex-step": "a complex step"}


class GradientMismatchError(AssertionError):
    """A gradient differs from central differences by more than the tolerance.

    Notes
    -----
    The message names the input, the direction and both numbers. Source: ours.

    Examples
    --------
    >>> from refattn.testing import GradientMismatchError
    >>> issubclass(GradientMismatchError, AssertionError)
    True
    """


def check_gradients(
    function: Callable[..., FloatArray],
    gradients: Callable[[FloatArray], Mapping[str, FloatArray]],
    inputs: Mapping[str, FloatArray],
    *,
    rtol: float,
    step: float = 1e-3,
    directions: int = 3,
    seed: int = 0,
    method: str = "central",
) -> dict[str, float]:
    """Compare gradients with central differences along random directions, each input alone.

    Parameters
    ----------
    function : callable
        ``function(**inputs)`` returns the output, in float64.
    gradients : callable
        ``gradients(upstream)`` returns the gradient of ``⟨upstream, output⟩`` for every input, by name.
    inputs : mapping of str to ndarray, any shape
        The point, in float64.
    rtol : float
        Largest relative error allowed; with infinity the errors are only measured.
    step : float, optional
        Length h of the step of central differences, relative to the root mean square of the input.
    directions : int, optional
        Random unit directions per input.
    seed : int, optional
        Seed of the upstream gradient and of the directions.
    method : {"central", "complex-step"}, optional
        How the derivative is taken; for ``"complex-step"`` the function has to be analytic and take complex arrays.

    Returns
    -------
    dict of str to float
        The largest error of each input.

    Raises
    ------
    GradientMismatchError
        An error exceeds `rtol`: names the input, the direction and both numbers. Or a gradient is missing, not finite
        or of the wrong shape.

    Notes
    -----
    ``1 + 4 · directions · len(inputs)`` evaluations of `function`, a quarter of them with ``"complex-step"``. Time
    O(directions · len(inputs)) evaluations. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([0.3, -1.2])
    >>> errors = check_gradients(lambda x: x**3, lambda g: {"x": 3 * x**2 * g}, {"x": x}, rtol=1e-7)
    >>> check_gradients(lambda x: x**3, lambda g: {"x": 3.003 * x**2 * g}, {"x": x}, rtol=1e-7)
    Traceback (most recent call last):
        ...
    refattn.testing.gradients.GradientMismatchError: x, direction 0: ...
    """
    as_option("method", method, METHODS)
    rtol, step = _tolerance(rtol), as_real("step", step, positive=True)
    inputs, directions = _points(inputs), as_count("directions", directions, least=1)
    rng = np.random.default_rng(as_count("seed", seed, least=0))
    upstream = rng.standard_normal(np.shape(function(**inputs)))
    found = gradients(upstream)
    errors: dict[str, float] = {}
    for name, point in inputs.items():
        gradient = _gradient(found, name, point)
        typical = _root_mean_square(gradient)
        errors[name] = 0.0
        for number in range(directions):
            direction = rng.standard_normal(point.shape)
            direction /= np.linalg.norm(direction)
            with np.errstate(over="ignore", invalid="ignore"):  # a number that is not finite is a mismatch
                numeric = float((upstream * _derivative(function, inputs, name, direction, step, method)).sum())
                analytic = float((gradient * direction).sum())
            error = _relative(numeric, analytic, typical)
            if not error <= rtol:
                raise GradientMismatchError(
                    f"{name}, direction {number}: gradient {analytic:.17g}, {METHODS[method]} {numeric:.17g},"
                    f" relative error {error:.3g} above {rtol:g}"
                )
            errors[name] = max(errors[name], error)
    return errors


def check_jacobian(
    function: Callable[..., FloatArray],
    gradients: Callable[[FloatArray], Mapping[str, FloatArray]],
    inputs: Mapping[str, FloatArray],
    *,
    rtol: float,
    step: float = 1e-3,
    method: str = "central",
) -> dict[str, float]:
    """Compare the full Jacobian with central differences, entry by entry; for small inputs.

    An entry's error is relative to the largest entry of the Jacobian with respect to that input.

    Parameters
    ----------
    function, gradients : callable
        As for `check_gradients`.
    inputs : mapping of str to ndarray, any shape
        The point, in float64; small.
    rtol : float
        Largest relative error allowed; with infinity the errors are only measured.
    step : float, optional
        As for `check_gradients`.
    method : {"central", "complex-step"}, optional
        As for `check_gradients`.

    Returns
    -------
    dict of str to float
        The largest error of each input.

    Raises
    ------
    GradientMismatchError
        As `check_gradients`.

    Notes
    -----
    ``1 + 4 · Σ size(input)`` evaluations of `function` and one of `gradients` per entry of the output. Time O(Σ
    size(input) + size(output)) evaluations. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([0.3, -1.2])
    >>> max(check_jacobian(lambda x: np.sin(x), lambda g: {"x": np.cos(x) * g}, {"x": x}, rtol=1e-9).values()) < 1e-9
    True
    """
    as_option("method", method, METHODS)
    rtol, step = _tolerance(rtol), as_real("step", step, positive=True)
    inputs = _points(inputs)
    shape = np.shape(function(**inputs))
    units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    rows = [gradients(unit) for unit in units]
    errors: dict[str, float] = {}
    for name, point in inputs.items():
        analytic = np.stack([_gradient(row, name, point).ravel() for row in rows])
        numeric = np.empty(analytic.shape)
        for column in range(point.size):
            direction = np.zeros(point.size)
            direction[column] = 1.0
            numeric[:, column] = _derivative(
                function, inputs, name, direction.reshape(point.shape), step, method
            ).ravel()
        with np.errstate(over="ignore", invalid="ignore"):  # a number that is not finite is a mismatch
            difference = np.abs(numeric - analytic)
        scale = float(max(np.abs(analytic).max(), np.abs(numeric).max()))
        error = float(difference.max()) / scale if scale else 0.0
        if not error <= rtol:
            i, j = np.unravel_index(int(np.argmax(difference)), difference.shape)
            raise GradientMismatchError(
                f"{name}, output {i}, input {j}: derivative {analytic[i, j]:.17g}, {METHODS[method]}"
                f" {numeric[i, j]:.17g}, relative error {error:.3g} above {rtol:g}"
            )
        errors[name] = error
    return errors


def _tolerance(rtol: Any) -> float:
    """Check the tolerance; infinity only measures."""
    return math.inf if isinstance(rtol, float) and rtol == math.inf else as_real("rtol", rtol, least=0.0)


def _points(inputs: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Check the inputs: named arrays of finite real numbers; integers become floats."""
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: {type(inputs).__name__} came, a mapping from names to arrays was wanted")
    points = {}
    for name, value in inputs.items():
        point = as_real_array(f"inputs, {name}", value)
        require_finite(f"inputs, {name}", point)
        if not point.size:
            raise ValueError(f"inputs, {name}: shape {point.shape} came, at least one entry was wanted")
        points[name] = point if point.dtype.kind == "f" else point.astype(np.float64)
    return points


def _gradient(found: Mapping[str, FloatArray], name: str, point: FloatArray) -> FloatArray:
    if name not in found:
        raise GradientMismatchError(f"{name}: no gradient came, only those of {', '.join(found) or 'nothing'}")
    gradient = np.asarray(found[name], np.float64)
    if gradient.shape != point.shape:
        raise GradientMismatchError(f"{name}: gradient of shape {gradient.shape} for an input of {point.shape}")
    if not np.isfinite(gradient).all():
        raise GradientMismatchError(f"{name}: gradient with {int((~np.isfinite(gradient)).sum())} entries not finite")
    return gradient


def _derivative(
    function: Callable[..., Any],
    inputs: Mapping[str, FloatArray],
    name: str,
    direction: FloatArray,
    step: float,
    method: str,
) -> FloatArray:
    """Derivative of the output along `direction` of the input `name`."""
    point = inputs[name]
    if method == "complex-step":
        tiny = 1e-100
        out = np.asarray(function(**{**inputs, name: point + 1j * tiny * direction}))
        if not np.iscomplexobj(out):
            raise TypeError(
                f"function: a real output came of a complex {name}; 'complex-step' wants an analytic function"
            )
        return np.asarray(out.imag / tiny)
    size = _root_mean_square(point) or 1.0
    h = step * size * np.sqrt(point.size) if np.count_nonzero(direction) > 1 else step * size

    def at(multiple: float) -> FloatArray:
        return np.asarray(function(**{**inputs, name: point + multiple * h * direction}))

    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # NaN where the step leaves the numbers
        return np.asarray((8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h))


def _root_mean_square(array: FloatArray) -> float:
    largest = float(np.abs(array).max(initial=0.0))  # the squares of what is divided by it neither overflow nor vanish
    return largest * float(np.sqrt(np.mean(np.square(array / largest)))) if largest else 0.0


def _relative(numeric: float, analytic: float, typical: float) -> float:
    scale = max(abs(numeric), abs(analytic), typical)
    return abs(numeric - analytic) / scale if scale else 0.0
