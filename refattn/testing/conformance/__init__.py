"""Conformance: somebody else's implementation of attention against the truth."""

from refattn.testing.conformance.adapters import Adapter
from refattn.testing.conformance.cases import ConformanceCase, check_case, list_cases
from refattn.testing.conformance.check import assert_conforms, check_attention
from refattn.testing.conformance.junit import as_junit
from refattn.testing.conformance.report import CaseResult, Cause, ConformanceReport

__all__ = [
    "Adapter",
    "CaseResult",
    "Cause",
    "ConformanceCase",
    "ConformanceReport",
    "as_junit",
    "assert_conforms",
    "check_attention",
    "check_case",
    "list_cases",
]
