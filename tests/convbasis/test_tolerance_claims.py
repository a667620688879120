"""The rows about starts, least squares and tolerances: they hold, quickly, and fail on planted errors."""

import dataclasses

import numpy as np
import pytest

from refattn.convbasis import ConvBasis
from refattn.report.claims import tolerance as claims
from refattn.report.ledger import FAILS, HOLDS, run_each
from refattn.testing import rope_structured
from refattn.testing.real_heads import load_real_heads

BY_ID = {claim.id: claim for claim in claims.CLAIMS}


def verdict(claim_id):
    (row,) = run_each([BY_ID[claim_id]], quick=True)
    assert not row.reason, row.reason
    return row.verdict


def changed(name, change):
    """Plant a function whose result is changed."""

    def plant(monkeypatch):
        right = getattr(claims, name)
        monkeypatch.setattr(claims, name, lambda *args, **options: change(right(*args, **options)))

    return plant


def kernels_off(factor):
    return lambda basis: ConvBasis(basis.starts, basis.kernels * factor)


def start_moved(best):
    """The last start of the best two, one column away."""
    starts = list(best.starts)
    starts[1] = starts[1] - np.array([0, 1]) if starts[1][1] - starts[1][0] > 1 else starts[1] + np.array([0, 1])
    return dataclasses.replace(best, starts=tuple(starts))


def errors_off(best):
    return dataclasses.replace(best, squared_error=best.squared_error + 1e-9 * best.energy)


def kernel_off(result):
    kernels = result.basis.kernels.copy()
    kernels[0, 0] += 1e-6 if kernels.dtype == np.float64 else 1e-2
    return dataclasses.replace(result, basis=ConvBasis(result.basis.starts, kernels))


def last_start_moved(result):
    """The last start a column late, with the kernels as they were."""
    if result.basis.starts.size == 1:
        return result
    starts, kernels = result.basis.starts.copy(), result.basis.kernels.copy()
    starts[-1] += 1
    kernels[-1, kernels.shape[1] - starts[-1] :] = 0
    return dataclasses.replace(result, basis=ConvBasis(starts, kernels))


def conv_like_heads(real):
    q, k, _, _ = rope_structured(2048, 64, starts=4, seed=0, lead=(len(real.layers), 1))
    return dataclasses.replace(real, q=q, k=k)


PLANTED = [
    ("starts.least-squares", changed("least_squares_basis", kernels_off(1 + 1e-9))),
    ("starts.best", changed("best_starts", start_moved)),
    ("starts.best", changed("best_starts", errors_off)),
    ("starts.to-tolerance", changed("recover_to_tolerance", kernel_off)),
    ("starts.to-tolerance", changed("recover_to_tolerance", last_start_moved)),
    ("starts.not-conv-like", changed("load_real_heads", conv_like_heads)),
]


@pytest.mark.parametrize("claim_id", BY_ID)
def test_the_claims_hold(claim_id):
    assert verdict(claim_id) == HOLDS


@pytest.mark.parametrize(("claim_id", "plant"), PLANTED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_planted_error_is_seen(claim_id, plant, monkeypatch):
    plant(monkeypatch)
    assert verdict(claim_id) == FAILS


def test_the_shipped_heads_are_the_ones_that_are_looked_at():
    assert load_real_heads().sha256[:12] in BY_ID["starts.not-conv-like"].measure(True).inputs
