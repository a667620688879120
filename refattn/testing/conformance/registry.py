"""The operations that can be checked, by name."""

from __future__ import annotations

from refattn.testing.conformance.conv import CONV
from refattn.testing.conformance.dense import DENSE
from refattn.testing.conformance.operation import Operation
from refattn.testing.conformance.operator import OPERATOR, THRESHOLDS
from refattn.testing.conformance.sparsek import SPARSEK

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (DENSE, CONV, SPARSEK, OPERATOR, THRESHOLDS)
}
