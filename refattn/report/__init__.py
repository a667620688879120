"""The claims ledger: every claim, how it was checked, what was measured, and the verdict (ours)."""

from refattn.report.document import comparable, schema, to_document
from refattn.report.ledger import Claim, Measurement, Report, Row, run_claims

__all__ = ["Claim", "Measurement", "Report", "Row", "comparable", "run_claims", "schema", "to_document"]
