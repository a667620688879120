"""Public test tools: inputs, gradient checks, error measures and tolerances, the ones our own tests use."""

from refattn.testing.errors import relative_error, row_errors
from refattn.testing.gradients import GradientMismatchError, check_gradients, check_jacobian
from refattn.testing.tolerances import Tolerance, tolerance

__all__ = [
    "GradientMismatchError",
    "Tolerance",
    "check_gradients",
    "check_jacobian",
    "relative_error",
    "row_errors",
    "tolerance",
]
