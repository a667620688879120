"""The ledger's rows about SparseK: each holds, and its check fails on a planted error."""

from __future__ import annotations

import pytest

from refattn.report.claims import sparsek as claims
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, run_each

BY_ID = {claim.id: claim for claim in claims.CLAIMS}


def _verdict(claim_id: str) -> str:
    (row,) = run_each([BY_ID[claim_id]], quick=True)
    assert not row.reason
    return row.verdict


@pytest.mark.parametrize("claim_id", BY_ID)
def test_every_claim_holds(claim_id):
    assert _verdict(claim_id) == (HOLDS_IF if claim_id == "sparsek.constant-pairs" else HOLDS)


def _with(change):
    """Plant a function that changes the result of the right one."""
    return lambda right: lambda *args, **kwargs: change(right(*args, **kwargs))


def _off(found):
    """Off by a thousandth: an array, or the first of a tuple."""
    return (1.001 * found[0], *found[1:]) if isinstance(found, tuple) else 1.001 * found


def _gradient_off(right):
    """The scores' gradient off by a thousandth, in every method but the oracle."""

    def wrong(dout, cache):
        found = right(dout, cache)
        return found._replace(scores=found.scores * (1 if cache.method == "oracle" else 1.001))

    return wrong


def _compiled_with_another_budget(right):
    return lambda z, k, method="fast": right(z, k + (method == "fast"))


def _steep(right):
    """Times that grow like n to the 1.2."""
    return lambda function, repeat: function.args[0].size ** 1.2


def _future_leaks(right):
    """Every row sees the last value."""
    return lambda **inputs: right(**inputs) + inputs["v"][-1]


def _keeps_one_too_many(right):
    return lambda z, k: right(z, k + 1)


def _falls_once(tau):
    tau = tau.copy()
    tau[..., -1] -= 1.0
    return tau


PLANTED = {
    "sparsek.two-solvers": ("sparsek_operator", _with(lambda p: p * (1 + 1e-9))),
    "sparsek.optimality": ("sparsek_operator", _with(lambda p: p * (1 + 1e-9))),
    "sparsek.convex-solver": ("sparsek_operator", _with(_off)),
    "sparsek.sparsemax": ("sparsek_operator", _with(_off)),
    "sparsek.top-k-limit": ("sparsek_operator", _keeps_one_too_many),
    "sparsek.jacobian": ("sparsek_jacobian", _with(_off)),
    "sparsek.monotone": ("prefix_thresholds", _with(_falls_once)),
    "sparsek.two-heaps": ("prefix_thresholds", _compiled_with_another_budget),
    "sparsek.threshold-time": ("_seconds", _steep),
    "sparsek.constant-pairs": ("selection_intervals", _keeps_one_too_many),
    "sparsek.gate-floor": ("selection_intervals", _keeps_one_too_many),
    "sparsek.linear-backward": ("prefix_pullback", _with(_off)),
    "sparsek.attention": ("sparsek_attention_backward", _gradient_off),
    "sparsek.gradients": ("sparsek_attention_backward", _gradient_off),
    "sparsek.dense-limit": ("sparsek_attention", _with(_off)),
    "sparsek.causality": ("sparsek_attention", _future_leaks),
    "sparsek.running-moments": ("sparsek_scores_forward", _with(_off)),
}


@pytest.mark.parametrize("claim_id", BY_ID)
def test_its_check_fails_on_a_planted_error(monkeypatch, claim_id):
    name, plant = PLANTED[claim_id]
    monkeypatch.setattr(claims, name, plant(getattr(claims, name)))
    assert _verdict(claim_id) == FAILS
