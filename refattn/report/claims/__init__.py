"""All claims, in the order of the ledger's rows: one module per subject."""

from refattn.report.claims import (
    applications,
    convbasis,
    dense,
    fast,
    inference,
    lowrank,
    model,
    real_heads,
    recover,
    sparsek,
    sparsek_fast,
    sparsek_model,
    tolerance,
    training,
)
from refattn.report.ledger import Claim

ALL: tuple[Claim, ...] = (
    *dense.CLAIMS,
    *convbasis.CLAIMS,
    *recover.CLAIMS,
    *inference.CLAIMS,
    *tolerance.CLAIMS,
    *fast.CLAIMS,
    *real_heads.CLAIMS,
    *model.CLAIMS,
    *training.CLAIMS,
    *lowrank.CLAIMS,
    *applications.CLAIMS,
    *sparsek.CLAIMS,
    *sparsek_fast.CLAIMS,
    *sparsek_model.CLAIMS,
)

__all__ = ["ALL"]
