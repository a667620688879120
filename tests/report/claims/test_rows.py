"""The rows: each says where it comes from, a quick report has no failure, and the verdicts are the known ones."""

import pytest

from refattn.dense import fast
from refattn.report.claims import ALL, dense
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN, run_each
from refattn.testing.real_heads import load_real_heads

OTHERS = {
    "conv.exp-transform-differences": HOLDS_IF,
    "conv.rope": HOLDS_IF,
    "conv.algorithm-1-rows": HOLDS_IF,
    "recover.noise": HOLDS_IF,
    "recover.monotone": HOLDS_IF,
    "fast.numerical-domain": HOLDS_IF,
    "training.gradient-rows": HOLDS_IF,
    "lowrank.feature-bound": HOLDS_IF,
    "sparsek.constant-pairs": HOLDS_IF,
    "sparsek.cache-memory": HOLDS_IF,
    "real.conv-structure": FAILS,
    "real.theorem-condition": FAILS,
    "figure.authors-setting": FAILS,
    "figure.authors-setting-trained-scale": FAILS,
    "figure.window-trained-scale": FAILS,
    "figure.falling": FAILS,
    "figure.falling-trained-scale": FAILS,
    "terms.real-heads": FAILS,
    "terms.near-linear": FAILS,
    "lowrank.real-heads": FAILS,
    "applications.encoder-structure": FAILS,
    "sparsek.model-gap-128": FAILS,
    "sparsek.model-gap-256-long": FAILS,
    "sparsek.model-gap-128-long": FAILS,
    "sparsek.model-passkey": FAILS,
    "classification.conv-decoder": FAILS,
    "classification.conv-encoder": FAILS,
    "classification.sparsek": FAILS,
    "model.perplexity": NOT_RUN,
    "model.shipped-heads": NOT_RUN,
    "model.conv-perplexity": NOT_RUN,
    "scratch.recall-1": NOT_RUN,
    "scratch.recall-2": NOT_RUN,
    "scratch.recall-4": NOT_RUN,
    "scratch.conv-lags": FAILS,
    "scratch.conv-bytes": FAILS,
}
"""Verdicts other than "holds" in a quick report."""

BY_LAST_BITS = {"sparsek.fast-float32"}
"""Rows about how much is rounded: whether they hold depends on the order in which a processor's BLAS sums up."""


def test_ids_are_unique_and_every_claim_says_where_it_comes_from():
    assert len({claim.id for claim in ALL}) == len(ALL) > 100
    assert all(c.source and c.claim.endswith(".") and c.check for c in ALL)
    assert all(c.measure or c.why_not for c in ALL)


def test_rows_about_tiles_are_measured_on_tiles():
    assert dense._BY_TILES**2 > fast._FEW_ENTRIES


@pytest.mark.parametrize(
    "claim", [pytest.param(claim, id=claim.id, marks=[pytest.mark.long] * claim.timed) for claim in ALL]
)
def test_a_quick_row_has_its_verdict_and_says_on_what_inputs(claim):
    (row,) = run_each([claim], quick=True)
    assert not row.failed, f"{row.verdict}: measured {row.measured}, bound {row.bound}. {row.reason}"
    if row.reason.startswith("needs "):
        pytest.skip(row.reason)
    expected = OTHERS.get(claim.id, HOLDS)
    if claim.id in BY_LAST_BITS:
        assert row.verdict in (HOLDS, FAILS)
    elif not claim.timed:  # a busy machine must not fail a test
        assert row.verdict == expected
    assert (row.measured is None) == (expected == NOT_RUN)
    assert bool(row.inputs) == (expected != NOT_RUN)
    if "SmolLM2-135M on Hamlet" in row.inputs:
        assert load_real_heads().sha256[:12] in row.inputs
