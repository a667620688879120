"""All claims, in the order of the ledger's rows: one module per subject."""

from refattn.report.claims import convbasis, dense, model, real_heads, recover, sparsek, training
from refattn.report.ledger import Claim

ALL: tuple[Claim, ...] = (
    *dense.CLAIMS,
    *convbasis.CLAIMS,
    *recover.CLAIMS,
    *real_heads.CLAIMS,
    *model.CLAIMS,
    *training.CLAIMS,
    *sparsek.CLAIMS,
)

__all__ = ["ALL"]
