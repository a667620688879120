"""Conformance: somebody else's implementation of attention against the truth."""

from refattn.testing.conformance.adapters import Adapter
from refattn.testing.conformance.check import assert_conforms, check_attention
from refattn.testing.conformance.report import CaseResult, Cause, ConformanceReport

__all__ = ["Adapter", "CaseResult", "Cause", "ConformanceReport", "assert_conforms", "check_attention"]
