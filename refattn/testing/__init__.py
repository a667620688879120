"""Public test tools: inputs, gradient checks, error measures and tolerances, the ones our own tests use."""

from refattn.testing.errors import relative_error, row_errors
from refattn.testing.gradients import GradientMismatchError, check_gradients, check_jacobian
from refattn.testing.inputs import Inputs, StructuredInputs, attention_inputs, rope_structured
from refattn.testing.tolerances import Tolerance, tolerance

__all__ = [
    "GradientMismatchError",
    "Inputs",
    "StructuredInputs",
    "Tolerance",
    "attention_inputs",
    "check_gradients",
    "check_jacobian",
    "relative_error",
    "rope_structured",
    "row_errors",
    "tolerance",
]
