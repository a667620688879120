"""Gradient checks by central differences or a complex step (ours).

With ``method="central"`` the derivative along a direction u is taken from four evaluations,
``(8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h``, whose error is O(h⁴). With ``"complex-step"`` it is
``Im f(x + ihu)/h`` with a tiny h, exact to rounding, for functions that take complex arrays and have no absolute value,
maximum or sort in them. What is compared is ``⟨upstream, df(u)⟩`` with ``⟨gradient, u⟩``, each input alone; the error
is relative to the size such a product has for a random direction, ``‖gradient‖ ‖u‖ / √size``, so a small gradient is
held to the same standard as a large one.

*Rounding is not an error.* An output of size F is computed to about one unit of rounding, ``ε = 2⁻⁵³ F``. Four of them
in the formula leave ``ε (8 + 8 + 1 + 1) / 12h = 1.5 ε/h`` in the derivative, with h the step's length; a complex step,
which subtracts nothing, leaves what a step of the input's own size ‖x‖ would, ``ε/‖x‖``, and the derivative's own
rounding. Errors of many outputs add up like the root of the sum of their squares, since the upstream gradient is drawn
at random. `ROUNDINGS` times that is subtracted from a difference before it is judged: where the true gradient is zero,
nothing but rounding is compared with nothing but rounding.

*Power.* An error of a gradient is seen as soon as it exceeds rtol of the gradient's size and ``1.5 · ROUNDINGS · 2⁻⁵³
F/h``, about ``5e-12 F/‖x‖`` with the step's default (``4e-15 F/‖x‖`` with a complex step): a gradient that moves the
output by less than 5e-12 of its size when x moves by its own is not told from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, as_array, as_count, as_option, as_real, as_real_array, require_finite

ROUNDINGS = 32
"""Units of rounding, of its own size, by which an output may be off: attention to 1,000 keys was off by up to 8."""
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
        ``function(**inputs)`` returns the output, in float64; what it returns is copied, so it may be a buffer that
        the next call fills again.
    gradients : callable
        ``gradients(upstream)`` returns the gradient of ``⟨upstream, output⟩`` for every input, by name.
    inputs : mapping of str to ndarray, any shape
        The point; `function` gets it in float64.
    rtol : float
        Largest relative error allowed, beyond what rounding explains; with infinity the errors are only measured.
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
        The largest error of each input, less what rounding explains: 0 where that explains all.

    Raises
    ------
    TypeError
        `function` returns neither float64 nor integers (for complex arrays: not complex128); an argument is of the
        wrong kind.
    ValueError
        An argument is out of range.
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
    upstream = rng.standard_normal(_output(function, inputs).shape)
    found = gradients(upstream.copy())
    of_inputs = {name: _gradient(found, name, point) for name, point in inputs.items()}
    errors: dict[str, float] = {}
    for name, point in inputs.items():
        gradient = of_inputs[name]
        typical = _root_mean_square(gradient)
        errors[name] = 0.0
        for number in range(directions):
            direction = rng.standard_normal(point.shape)
            direction /= np.linalg.norm(direction)
            with np.errstate(over="ignore", invalid="ignore"):  # a number that is not finite is a mismatch
                derivative, rounding = _derivative(function, inputs, name, direction, step, method)
                numeric = float((upstream * derivative).sum())
                analytic = float((gradient * direction).sum())
                beyond = max(abs(numeric - analytic) - _norm(rounding), 0.0)
            scale = max(abs(numeric), abs(analytic), typical)
            error = beyond / scale if scale else 0.0
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

    An entry's error is relative to the largest entry of the Jacobian with respect to that input; rounding, of the size
    of the largest output, is not an error (see `check_gradients`).

    Parameters
    ----------
    function, gradients, inputs, rtol, step, method : optional
        As for `check_gradients`; the inputs small.

    Returns
    -------
    dict of str to float
        The largest error of each input, as for `check_gradients`.

    Raises
    ------
    TypeError, ValueError, GradientMismatchError
        As `check_gradients`.

    Notes
    -----
    ``1 + 4 · Σ size(input)`` evaluations of `function` and one of `gradients` per entry of the output. Time O(Σ
    size(input) + size(output)) evaluations. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([0.3, -1.2])
    >>> check_jacobian(lambda x: np.sin(x), lambda g: {"x": np.cos(x) * g}, {"x": x}, rtol=1e-9)
    {'x': 0.0}
    >>> round(check_jacobian(lambda x: np.sin(x), lambda g: {"x": 1.01 * np.cos(x) * g}, {"x": x}, rtol=0.1)["x"], 3)
    0.01
    """
    as_option("method", method, METHODS)
    rtol, step = _tolerance(rtol), as_real("step", step, positive=True)
    inputs = _points(inputs)
    output = _output(function, inputs)
    rows: dict[str, list[FloatArray]] = {name: [] for name in inputs}
    for unit in np.eye(output.size).reshape(-1, *output.shape):
        found = gradients(unit.copy())
        for name, point in inputs.items():
            rows[name].append(_gradient(found, name, point).ravel())
    errors: dict[str, float] = {}
    for name, point in inputs.items():
        analytic = np.stack(rows[name])
        numeric, rounding = np.empty(analytic.shape), np.empty(analytic.shape)
        for column in range(point.size):
            direction = np.zeros(point.size)
            direction[column] = 1.0
            derivative, of_output = _derivative(function, inputs, name, direction.reshape(point.shape), step, method)
            numeric[:, column], rounding[:, column] = derivative.ravel(), of_output.max()
        with np.errstate(over="ignore", invalid="ignore"):  # a number that is not finite is a mismatch
            difference = np.maximum(np.abs(numeric - analytic) - rounding, 0)
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
    """Check the inputs: named arrays of finite real numbers, which become float64."""
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: {type(inputs).__name__} came, a mapping from names to arrays was wanted")
    points: dict[str, FloatArray] = {}
    for name, value in inputs.items():
        point = as_real_array(f"inputs, {name}", value)
        require_finite(f"inputs, {name}", point)
        if not point.size:
            raise ValueError(f"inputs, {name}: shape {point.shape} came, at least one entry was wanted")
        points[name] = point.astype(np.float64)
    return points


def _output(function: Callable[..., Any], inputs: Mapping[str, Any], dtype: str = "float64") -> NDArray[Any]:
    """Return a copy of the output: the function may use its own array again, and write to those it is given."""
    out = as_array("function", function(**{name: point.copy() for name, point in inputs.items()}))
    if out.dtype.kind in "iu":
        out = out.astype(np.float64)
    if out.dtype != dtype:
        raise TypeError(f"function: an output of {out.dtype} came, {dtype} was wanted")
    return out.copy()


def _gradient(found: Mapping[str, FloatArray], name: str, point: FloatArray) -> FloatArray:
    """Return a copy of the gradient of the input `name`, checked."""
    if name not in found:
        raise GradientMismatchError(f"{name}: no gradient came, only those of {', '.join(found) or 'nothing'}")
    gradient: FloatArray = np.array(found[name], np.float64)
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
) -> tuple[FloatArray, FloatArray]:
    """Derivative of the output along `direction` of the input `name`, and what rounding may leave in it."""
    point = inputs[name]
    size = _root_mean_square(point) or 1.0
    length = size * math.sqrt(point.size) if np.count_nonzero(direction) > 1 else size
    unit = ROUNDINGS * 2.0**-53
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # NaN where the step leaves the numbers
        if method == "complex-step":
            tiny = 1e-100
            out = _output(function, {**inputs, name: point + 1j * tiny * direction}, "complex128")
            derivative = out.imag / tiny
            return derivative, unit * (np.abs(out.real) / length + np.abs(derivative))
        h = step * length
        ahead, behind, far_ahead, far_behind = (
            _output(function, {**inputs, name: point + multiple * h * direction}) for multiple in (1, -1, 2, -2)
        )
        derivative = (8 * (ahead - behind) - (far_ahead - far_behind)) / (12 * h)
        near, far = unit * np.abs(ahead) + unit * np.abs(behind), unit * np.abs(far_ahead) + unit * np.abs(far_behind)
        return derivative, (8 * near + far) / (12 * h)


def _root_mean_square(array: FloatArray) -> float:
    largest = float(np.abs(array).max(initial=0.0))  # the squares of what is divided by it neither overflow nor vanish
    return largest * float(np.sqrt(np.mean(np.square(array / largest)))) if largest else 0.0


def _norm(array: FloatArray) -> float:
    return _root_mean_square(array) * math.sqrt(array.size)
