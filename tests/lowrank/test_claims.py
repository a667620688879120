"""The ledger's rows about low rank and about the applications: the right verdict, and a check that can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from refattn.experiments.conv import full_attention
from refattn.lowrank.masks import CausalStructure
from refattn.report.claims import applications, lowrank
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN, run_each

BY_ID = {claim.id: claim for claim in (*lowrank.CLAIMS, *applications.CLAIMS)}
EXPECTED = {
    "lowrank.feature-bound": HOLDS_IF,
    "lowrank.real-heads": FAILS,
    "applications.encoder-structure": FAILS,
}


def _verdict(claim_id):
    (row,) = run_each([BY_ID[claim_id]], quick=True)
    if row.verdict == NOT_RUN and "not installed" in row.reason:
        pytest.skip(row.reason)
    assert not row.reason
    return row.verdict


TIMED = ("lowrank.linear-time",)  # a busy machine must not fail a test: that is a benchmark


@pytest.mark.parametrize("claim_id", [claim_id for claim_id in BY_ID if claim_id not in TIMED])
def test_every_claim_has_its_verdict(claim_id):
    assert _verdict(claim_id) == EXPECTED.get(claim_id, HOLDS)


def _with(change):
    """Plant a function that changes the result of the right one."""
    return lambda right: lambda *args, **kwargs: change(right(*args, **kwargs))


def _twice_the_weight(right):
    """The feature of highest degree counted twice: off by the polynomial's last term."""

    def wrong(*args, **kwargs):
        features = right(*args, **kwargs)
        features._key_weights = (
            np.where(np.arange(features.rank) == features.rank - 1, 2.0, 1.0) * features._key_weights
        )
        return features

    return wrong


def _no_polynomial(right):
    """Only the constant feature is left: the bound is far from what is reached, or far below it."""

    def wrong(*args, **kwargs):
        features = right(*args, **kwargs)
        features._key_weights = np.where(np.arange(features.rank) == 0, features._key_weights, 0.0)
        return features

    return wrong


def _fast_off(right):
    """The compiled product off by a millionth of a millionth and more, in its last row."""

    def wrong(*, mask, method="fast", **inputs):
        out, cache = right(**inputs, mask=mask, method=method)
        if method == "fast":
            out = out + 1e-10 * (np.arange(len(out)) == len(out) - 1)[:, None]
        return out, cache

    return wrong


def _first_gradient_off(right):
    return lambda dout, cache: (lambda found: found._replace(**{found._fields[0]: 1.001 * found[0]}))(
        right(dout, cache)
    )


class _LaxCausal(CausalStructure):
    """Takes a mask whose rows are not causal."""

    @classmethod
    def from_dense(cls, dense):
        return cls(len(dense))


def _one_column_short(right):
    return lambda n, group, **options: right(n, max(group - 1, 1), **options)


def _steep(right):
    """Times that grow like n to the 1.5."""
    return lambda function, repeat: len(function.args[0]) ** 1.5


def _bound_halved(found):
    out, cache = found
    return out, dataclasses.replace(cache, bound=0.1 * cache.bound)


class _Heads:
    """Heads whose logits are nearly zero, which do need a small rank only."""

    def __init__(self, heads):
        self.q, self.k, self.sha256 = 1e-9 * heads.q, heads.k, heads.sha256


def _biased(right):
    """Features whose squared norm is forgotten in a part."""

    class Wrong(right):
        def _queries(self, q, *, shifted):
            return super()._queries(q, shifted=shifted) * 1.1

    return Wrong


def _overstated(right):
    class Wrong(right):
        def relative_variance(self, q, k):
            return 1.5 * super().relative_variance(q, k)

    return Wrong


def _gradient_by_method(right):
    """A gradient of the compiled method off by a millionth."""

    def wrong(dout, cache):
        found = right(dout, cache)
        return found._replace(v=found.v * (1 + 1e-6 * (cache.method == "fast")))

    return wrong


def _contents_are_free(right):
    """Keys whose contents are not constant within segments."""

    def wrong(n, d, **options):
        found = right(n, d, **options)
        return found._replace(k=np.random.default_rng(0).permutation(found.k))

    return wrong


def _a_start_is_missing(right):
    return lambda kind, n, k: right(kind, n, k)[:-1]


PLANTED = {
    "lowrank.feature-bound": (lowrank, "PolynomialFeatures", _twice_the_weight),
    "lowrank.feature-tightness": (lowrank, "polynomial_error", _with(lambda error: 50 * error)),
    "lowrank.features": (lowrank, "PolynomialFeatures", _no_polynomial),
    "lowrank.causal": (lowrank, "masked_product_forward", _fast_off),
    "lowrank.row-change": (lowrank, "masked_product_forward", _fast_off),
    "lowrank.continuous-rows": (lowrank, "masked_product_forward", _fast_off),
    "lowrank.distinct-columns": (lowrank, "masked_product_forward", _fast_off),
    "lowrank.distinct-rows": (lowrank, "masked_product_backward", _gradient_by_method),
    "lowrank.product-gradients": (lowrank, "masked_product_backward", _first_gradient_off),
    "lowrank.first-bad-row": (lowrank, "CausalStructure", lambda right: _LaxCausal),
    "lowrank.layouts": (lowrank, "shifted_groups", _one_column_short),
    "lowrank.linear-time": (lowrank, "_seconds", _steep),
    "lowrank.attention-bound": (lowrank, "lowrank_attention_forward", _with(_bound_halved)),
    "lowrank.attention-gradients": (lowrank, "lowrank_attention_backward", _first_gradient_off),
    "lowrank.random-unbiased": (lowrank, "RandomFeatures", _biased),
    "lowrank.random-variance": (lowrank, "RandomFeatures", _overstated),
    "applications.near-rope": (applications, "rope_structured", _contents_are_free),
    "applications.encoder-exact": (full_attention, "chosen_starts", _a_start_is_missing),
}


@pytest.mark.parametrize("claim_id", [claim_id for claim_id in BY_ID if EXPECTED.get(claim_id) != FAILS])
def test_its_check_fails_on_a_planted_error(monkeypatch, claim_id):
    module, name, plant = PLANTED[claim_id]
    monkeypatch.setattr(module, name, plant(getattr(module, name)))
    assert _verdict(claim_id) == FAILS


def test_a_verdict_that_something_does_not_hold_can_change(monkeypatch):
    right = lowrank.load_real_heads
    monkeypatch.setattr(lowrank, "load_real_heads", lambda **options: _Heads(right(**options)))
    assert _verdict("lowrank.real-heads") == HOLDS
    monkeypatch.setattr(full_attention, "chosen_starts", lambda kind, n, k: np.arange(n))
    assert _verdict("applications.encoder-structure") == HOLDS
