"""The claims themselves: all run, what must hold holds, and each check fails on a planted error."""

import numpy as np
import pytest
from gradient_faults import FAULTS

from refattn._threads import thread_count
from refattn.convbasis import ConvBasis, basis, bounds, recovery, toeplitz
from refattn.convbasis.fast import blocks
from refattn.convbasis.fast import softmax as fast_path
from refattn.convbasis.guarded import softmax as guarded
from refattn.report.claims import ALL
from refattn.report.claims import convbasis as convbasis_claims
from refattn.report.claims import dense as dense_claims
from refattn.report.claims import fast as fast_claims
from refattn.report.claims import real_heads as real_heads_claims
from refattn.report.claims import recover as recover_claims
from refattn.report.claims import training as training_claims
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN, run_each

BY_ID = {claim.id: claim for claim in ALL}


def verdict(claim_id):
    (row,) = run_each([BY_ID[claim_id]], quick=True)
    return row.verdict


def test_ids_are_unique_and_every_claim_says_where_it_comes_from():
    assert len(BY_ID) == len(ALL) >= 15
    assert all(c.source and c.claim.endswith(".") and c.check for c in ALL)
    assert all(c.measure or c.why_not for c in ALL)


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: claim.id)
def test_quick_report_has_no_failure(claim):
    (row,) = run_each([claim], quick=True)
    assert not row.failed, f"{row.verdict}: measured {row.measured}, bound {row.bound}. {row.reason}"
    if row.verdict != NOT_RUN:
        assert row.inputs
        assert row.measured is not None


def test_the_known_failures_of_the_papers_hopes_are_shown():
    assert verdict("real.conv-structure") == FAILS
    assert verdict("conv.algorithm-1-rows") == HOLDS_IF
    assert verdict("conv.rope") == HOLDS_IF
    assert verdict("recover.noise") == HOLDS_IF


def off_by(factor):
    """A gradient of q off by a factor."""

    def plant(monkeypatch):
        right = dense_claims.dense_attention_backward
        monkeypatch.setattr(
            dense_claims, "dense_attention_backward", lambda g, c: right(g, c)._replace(q=right(g, c).q * factor)
        )

    return plant


def scaled_attention(module):
    """Exact attention without its 1/√d."""

    def plant(monkeypatch):
        right = module.dense_attention
        monkeypatch.setattr(module, "dense_attention", lambda q, k, v, **kw: right(q, k, v, **{**kw, "scale": 1.0}))

    return plant


def future_leak(monkeypatch):
    right = dense_claims.dense_attention
    monkeypatch.setattr(dense_claims, "dense_attention", lambda q, k, v: right(q, k, v, mask="full"))


def start_off_by_one(monkeypatch):
    right = recovery.search

    def late(predicate, s, t):
        found = right(predicate, s, t)
        return None if found is None else min(found + 1, t)

    monkeypatch.setattr(recovery, "search", late)
    monkeypatch.setattr(recover_claims, "search", late)


def kernel_shifted_by_a_row(monkeypatch):
    def shifted(a, x):
        return np.roll(toeplitz._conv_direct(a, x), 1, axis=0)

    monkeypatch.setattr(toeplitz, "fft_product", shifted)


def exp_without_shift(monkeypatch):
    right = ConvBasis.exp_transform
    monkeypatch.setattr(ConvBasis, "exp_transform", lambda self, shift=0.0: right(self, shift + 1e-3))


def last_column_forgotten(monkeypatch):
    right = basis.decompose

    def forgetful(h):
        wrong = np.array(h, dtype=float)
        wrong[-1, -1] += 1.0
        return right(wrong)

    monkeypatch.setattr(convbasis_claims, "decompose", forgetful)


def no_guard(monkeypatch):
    monkeypatch.setitem(bounds.ROW_TOLERANCE, "float64", 1e300)


def optimistic_estimate(monkeypatch):
    right = bounds.convolution_error
    monkeypatch.setattr(convbasis_claims, "convolution_error", lambda *args: 0.02 * right(*args))


def bound_too_small(name):
    def plant(monkeypatch):
        right = getattr(recover_claims, name)
        monkeypatch.setattr(recover_claims, name, lambda r, v: 0.05 * right(r, v))

    return plant


def small_sharp_bound(monkeypatch):
    monkeypatch.setattr(real_heads_claims, "sharp_bound", lambda r, v: 0.1 * bounds.sharp_bound(r, v))


def keep_every_row(monkeypatch):
    """The fast path's guard switched off: every estimate says that nothing is lost."""
    right = fast_path.FastSoftmax._write_block_transform
    monkeypatch.setattr(
        fast_path.FastSoftmax,
        "_write_block_transform",
        lambda *given: (0 * right(*given)[0], *right(*given)[1:]),
    )


def adjoint_shifted_by_a_row(monkeypatch):
    right = blocks.BlockProduct.product

    def shifted(self, x, *, transposed=False):
        return np.roll(right(self, x, transposed=transposed), int(transposed), axis=0)

    monkeypatch.setattr(blocks.BlockProduct, "product", shifted)


def bits_by_thread(monkeypatch):
    right = fast_claims.conv_attention
    monkeypatch.setattr(
        fast_claims, "conv_attention", lambda *a, **kw: right(*a, **kw) * np.float32(1 + 1e-6 * thread_count())
    )


def gradient_off(name):
    """A gradient of q, or of X, off by a tenth of a percent."""

    def plant(monkeypatch):
        right = getattr(training_claims, name)
        field = "X" if name.startswith("loss") else "q"

        def wrong(*args, **kwargs):
            found = right(*args, **kwargs)
            return found._replace(**{field: 1.001 * getattr(found, field)})

        monkeypatch.setattr(training_claims, name, wrong)

    plant.__name__ = name
    return plant


def fast_gradient_off(monkeypatch):
    right = training_claims.conv_attention_backward

    def wrong(dout, cache, **options):
        found = right(dout, cache, **options)
        return found._replace(v=found.v * 1.001) if cache.method == "fast" else found

    monkeypatch.setattr(training_claims, "conv_attention_backward", wrong)


def segment_dropped(monkeypatch):
    """The last segment's columns left out of the lower product."""
    right = guarded.segment_product

    def drop(g, x):
        x = x.copy()
        x[g.starts[-1] :] = 0
        return right(g, x)

    monkeypatch.setattr(guarded, "segment_product", drop)


PLANTED = [
    ("dense.definition", scaled_attention(dense_claims)),
    ("dense.gradients", off_by(1.001)),
    ("dense.causality", future_leak),
    ("conv.fft-product", kernel_shifted_by_a_row),
    ("conv.decomposition", last_column_forgotten),
    ("conv.decomposition-real", last_column_forgotten),
    ("conv.exp-transform", exp_without_shift),
    ("conv.guarded-rows", no_guard),
    ("conv.rounding-estimate", optimistic_estimate),
    ("recover.known-starts", start_off_by_one),
    ("recover.noise", start_off_by_one),
    ("recover.probes", start_off_by_one),
    ("inference.exact-basis", segment_dropped),
    ("inference.exact-basis", scaled_attention(recover_claims)),
    ("inference.k-equals-n", segment_dropped),
    ("inference.theorem", bound_too_small("inference_bound")),
    ("inference.a-posteriori", bound_too_small("sharp_bound")),
    ("fast.numerical-domain", keep_every_row),
    ("fast.exact-basis", scaled_attention(fast_claims)),
    ("fast.adjoint", adjoint_shifted_by_a_row),
    ("fast.threads", bits_by_thread),
    ("training.oracle", gradient_off("loss_gradient_oracle")),
    ("training.loss-gradient", gradient_off("loss_gradient_paper")),
    ("training.attention-gradient", gradient_off("conv_attention_backward")),
    ("training.perturbed", gradient_off("conv_attention_backward")),
    ("training.approximation-gradient", gradient_off("conv_attention_backward")),
    ("training.fast-equals-paper", fast_gradient_off),
    *(("training.gradient-rows", fault) for fault in FAULTS),
    ("real.a-posteriori", small_sharp_bound),
    ("real.paper-equals-oracle", segment_dropped),
]


@pytest.mark.parametrize(
    ("claim_id", "plant"),
    PLANTED,
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_a_planted_error_is_seen(claim_id, plant, monkeypatch):
    assert verdict(claim_id) in (HOLDS, HOLDS_IF)
    plant(monkeypatch)
    assert verdict(claim_id) == FAILS
