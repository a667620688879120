"""Public test tools: the ones our own tests use: inputs, gradient checks, tolerances; conformance, vectors."""

from refattn.testing.conformance import (
    Adapter,
    Cause,
    ConformanceCase,
    ConformanceReport,
    as_junit,
    assert_conforms,
    check_attention,
    check_case,
    list_cases,
)
from refattn.testing.errors import relative_error, row_errors
from refattn.testing.gradients import GradientMismatchError, check_gradients, check_jacobian
from refattn.testing.inputs import Inputs, StructuredInputs, attention_inputs, rope_structured
from refattn.testing.tolerances import Tolerance, tolerance
from refattn.testing.vectors import VectorCase, load_manifest, load_vectors

__all__ = [
    "Adapter",
    "Cause",
    "ConformanceCase",
    "ConformanceReport",
    "GradientMismatchError",
    "Inputs",
    "StructuredInputs",
    "Tolerance",
    "VectorCase",
    "as_junit",
    "assert_conforms",
    "attention_inputs",
    "check_attention",
    "check_case",
    "check_gradients",
    "check_jacobian",
    "list_cases",
    "load_manifest",
    "load_vectors",
    "relative_error",
    "rope_structured",
    "row_errors",
    "tolerance",
]
