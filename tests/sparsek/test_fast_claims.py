"""The ledger's rows about the fast path and the cache: each holds, and its check fails on a planted error."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.report.claims import sparsek_fast as claims
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, run_each

BY_ID = {claim.id: claim for claim in claims.CLAIMS}
TIMED = ("sparsek.linear-time", "sparsek.speed")  # a busy machine must not fail a test: these are benchmarks
CHECKED = [claim_id for claim_id in BY_ID if claim_id not in TIMED]


def _verdict(claim_id: str) -> str:
    (row,) = run_each([BY_ID[claim_id]], quick=True)
    assert not row.reason
    return row.verdict


@pytest.mark.parametrize("claim_id", CHECKED)
def test_every_claim_that_is_not_timed_holds(claim_id):
    assert _verdict(claim_id) == (HOLDS_IF if claim_id == "sparsek.cache-memory" else HOLDS)


def _gradient_off(right):
    """The scores' gradient of the fast path off by a thousandth."""

    def wrong(dout, cache):
        found = right(dout, cache)
        return found._replace(scores=found.scores * (1.001 if cache.method == "fast" else 1))

    return wrong


def _rounded(right):
    """The fast path's gradients rounded to half precision."""

    def wrong(dout, cache):
        found = right(dout, cache)
        return found._replace(k=found.k.astype(np.float16).astype(found.k.dtype)) if cache.method == "fast" else found

    return wrong


def _another_run_another_bit(right):
    runs = iter(range(10))

    def wrong(dout, cache):
        found = right(dout, cache)
        found.v[0, 0] += next(runs) * 1e-3
        return found

    return wrong


def _future_leaks(right):
    return lambda **inputs: right(**inputs) + inputs["v"][-1]


def _off(right):
    return lambda *args, **options: 1.001 * right(*args, **options)


def _no_cache_is_the_same(right):
    """Every cache a little larger than the one before."""

    class Wrong(right):
        made = 0

        @property
        def nbytes(self):
            Wrong.made += 1
            return super().nbytes + Wrong.made

    return Wrong


PLANTED = {
    "sparsek.fast": ("sparsek_attention_backward", _gradient_off),
    "sparsek.fast-float32": ("sparsek_attention_backward", _rounded),
    "sparsek.fast-bits": ("sparsek_attention_backward", _another_run_another_bit),
    "sparsek.fast-causality": ("sparsek_attention", _future_leaks),
    "sparsek.linear-time": ("_seconds", lambda right: lambda inputs, both: len(inputs["q"]) ** 1.2),
    "sparsek.linear-memory": ("_peak", lambda right: lambda n: right(n) + n / 64),
    "sparsek.speed": ("_seconds", lambda right: lambda inputs, both: 1e3),
    "sparsek.cache-replay": ("sparsek_attention", _off),
    "sparsek.cache-memory": ("SparseKDecodingCache", _no_cache_is_the_same),
}


@pytest.mark.parametrize("claim_id", BY_ID)
def test_its_check_fails_on_a_planted_error(monkeypatch, claim_id):
    if claim_id == "sparsek.speed":
        pytest.importorskip("torch")
    name, plant = PLANTED[claim_id]
    monkeypatch.setattr(claims, name, plant(getattr(claims, name)))
    assert _verdict(claim_id) == FAILS
