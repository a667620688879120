"""All claims, in the order of the ledger's rows: one module per subject."""

from refattn.report.claims import (
    applications,
    classification,
    conv_figure,
    convbasis,
    decoder,
    dense,
    fast,
    inference,
    lowrank,
    model,
    real_heads,
    scratch,
    sparsek,
    sparsek_fast,
    sparsek_model,
    terms,
    tolerance,
    training,
)
from refattn.report.ledger import Claim

_SUBJECTS = (
    dense, convbasis, inference, tolerance, fast, real_heads, conv_figure, terms, model, training, lowrank,
    applications, sparsek, sparsek_fast, sparsek_model, decoder, classification,
    scratch,
)  # fmt: skip

ALL: tuple[Claim, ...] = tuple(
    found for subject in _SUBJECTS for found in vars(subject).values() if isinstance(found, Claim)
)

__all__ = ["ALL"]
