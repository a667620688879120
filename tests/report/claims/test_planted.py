"""Every row of the ledger fails on the errors that its claim names: each is planted, and the verdict is demanded.

Where a claim does not hold to begin with, what would make it hold is planted. `PLANTED` says how each error that a
claim names in words is made; an id that one of the two lists lacks fails a test.
"""

import sys

import numpy as np
import planters
import pytest
from gradient_faults import FAULTS
from planters import Decoder, backward, field_off, grows_like, instead, of_each, result, scaled

from refattn.convbasis import ConvBasis, recovery, toeplitz
from refattn.convbasis.fast import blocks
from refattn.convbasis.fast.softmax import FastSoftmax
from refattn.convbasis.guarded import softmax as guarded
from refattn.experiments.conv import figure, full_attention, terms_against_n
from refattn.models.attentions import sparsek as sparsek_in_layers
from refattn.models.layers import named
from refattn.report.claims import ALL
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, run_each

IN_FULL_ONLY = {
    "model.perplexity": planters.model(Decoder()),
    "model.conv-perplexity": planters.model(Decoder()),
    "model.shipped-heads": planters.heads_of_the_model(0),
    "scratch.recall-1": planters.study(0.1),
    "scratch.recall-2": planters.study(0.1),
    "scratch.recall-4": planters.study(0.1),
    "scratch.conv-lags": planters.conv_study(0.0),
    "scratch.conv-bytes": planters.conv_study(0.0),
}
"""Rows that a quick report does not run, and what stands for the model, or the records, before an error is planted."""

STARTS_LATE = instead("search", planters.late, recovery)
SEGMENT_DROPPED = instead("segment_product", planters.last_segment_dropped, guarded)
UNSCALED = instead("dense_attention", planters.logits_unscaled)
COMPILED_OFF = instead("masked_product_forward", planters.last_row_off_where_compiled)
RECORDS_WORSE = instead("shipped_rows", planters.worse_learned_scores)

TAKE_LONG = (
    "training.gradient-rows", "training.approximation-gradient", "sparsek.attention", "sparsek.gradients",
    "sparsek.fast", "sparsek.fast-float32", "starts.to-tolerance", "inference.k-equals-n",
    "applications.encoder-structure",
)  # fmt: skip

PLANTED = {
    "dense.definition": [UNSCALED],
    "dense.gradients": [result("dense_attention_backward", field_off("q"))],
    "dense.masked-rows": [result("dense_attention_forward", planters.a_masked_row_gets_something)],
    "dense.causality": [instead("dense_attention", lambda right: lambda q, k, v: right(q, k, v, mask="full"))],
    "dense.float32": [instead("dense_attention", planters.half_precision)],
    "dense.tiles": [planters.backward("dense_attention_backward", field_off("q"), "fast")],
    "dense.torch": [result("dense_attention_backward", field_off("q"))],
    "conv.fft-product": [
        instead("fft_product", lambda right: lambda a, x: np.roll(toeplitz._conv_direct(a, x), 1, axis=0), toeplitz)
    ],
    "conv.additivity": [result("subconv_matrix", planters.one_entry_off)],
    "conv.decomposition": [instead("decompose", planters.last_entry_forgotten)],
    "conv.decomposition-real": [instead("decompose", planters.last_entry_forgotten)],
    "conv.exp-transform": [
        instead("exp_transform", lambda right: lambda self, shift=0.0: right(self, shift + 1e-3), ConvBasis)
    ],
    "conv.exp-transform-differences": [planters.wild_logits],
    "conv.rope": [result("basis_from_starts", planters.kernels_off(1 + 1e-6))],
    "conv.algorithm-1-rows": [result("algorithm_1", lambda out: np.roll(out, 1, axis=0))],
    "conv.guarded-rows": [planters.unguarded],
    "conv.rounding-estimate": [result("convolution_error", scaled(0.02))],
    "recover.known-starts": [STARTS_LATE],
    "recover.noise": [STARTS_LATE],
    "recover.probes": [instead("search", planters.late)],
    "recover.first-columns": [STARTS_LATE],
    "recover.memory": [instead("conv_attention", planters.holding(lambda q: (len(q), len(q))))],
    "recover.monotone": [result("problems", of_each(field_off("delta", 3)))],
    "recover.logits": [result("problems", of_each(lambda p: p._replace(starts=p.starts + (np.arange(4) == 3))))],
    "conv.product-time": [grows_like(1.5)],
    "inference.exact-basis": [SEGMENT_DROPPED, UNSCALED],
    "inference.k-equals-n": [SEGMENT_DROPPED],
    "inference.theorem": [result("inference_bound", scaled(0.05))],
    "inference.a-posteriori": [result("sharp_bound", scaled(0.05))],
    "inference.time": [grows_like(1.5)],
    "starts.least-squares": [result("least_squares_basis", planters.kernels_off(1 + 1e-9))],
    "starts.best": [result("best_starts", planters.one_start_moved), result("best_starts", planters.errors_off)],
    "starts.to-tolerance": [
        result("recover_to_tolerance", planters.one_kernel_off),
        result("recover_to_tolerance", planters.last_start_moved),
    ],
    "starts.not-conv-like": [result("load_real_heads", planters.conv_like)],
    "fast.numerical-domain": [instead("_write_block_transform", planters.no_estimate, FastSoftmax)],
    "fast.exact-basis": [UNSCALED],
    "fast.adjoint": [instead("product", planters.transposed_shifted, blocks.BlockProduct)],
    "fast.threads": [result("conv_attention", planters.bits_by_thread)],
    "real.conv-structure": [result("load_real_heads", planters.shorter)],
    "real.theorem-condition": [result("closeness", field_off("eps", 1e-6))],
    "real.a-posteriori": [result("sharp_bound", scaled(0.1))],
    "real.paper-equals-oracle": [SEGMENT_DROPPED],
    "figure.authors-setting": [result("load_real_heads", planters.shorter)],
    "figure.authors-setting-trained-scale": [result("load_real_heads", planters.shorter)],
    "figure.running-mean": [result("conv_attention", scaled(1.2), figure)],
    "figure.running-mean-trained-scale": [result("conv_attention", scaled(1.5), figure)],
    "figure.window": [result("conv_attention", scaled(1.5), figure)],
    "figure.window-trained-scale": [instead("WindowAttention", lambda right: lambda width: right(1), figure)],
    "figure.falling": [instead("conv_attention", planters.nearer_with_every_term, figure)],
    "figure.falling-trained-scale": [instead("conv_attention", planters.nearer_with_every_term, figure)],
    "terms.structured": [result("conv_attention", scaled(1.2), figure)],
    "terms.real-heads": [result("relative_error", lambda found: 0.0, terms_against_n)],
    "terms.near-linear": [result("relative_error", lambda found: 0.0, terms_against_n)],
    "model.perplexity": [planters.model(Decoder(exact=24.59 * 1.02))],
    "model.shipped-heads": [planters.heads_of_the_model(2)],
    "model.conv-perplexity": [planters.model(Decoder(replaced=24.6))],
    "training.oracle": [result("loss_gradient_oracle", field_off("X"))],
    "training.loss-gradient": [result("loss_gradient_paper", field_off("X"))],
    "training.attention-gradient": [result("conv_attention_backward", field_off("q"))],
    "training.perturbed": [result("conv_attention_backward", field_off("q"))],
    "training.approximation-gradient": [result("conv_attention_backward", field_off("q"))],
    "training.fast-equals-paper": [backward("conv_attention_backward", field_off("v"), "fast")],
    "training.gradient-rows": [lambda monkeypatch, module, fault=fault: fault(monkeypatch) for fault in FAULTS],
    "training.time": [grows_like(1.5)],
    "training.memory": [instead("conv_attention_backward", planters.holding(lambda dout: (40, *dout.shape)))],
    "lowrank.feature-bound": [
        result("PolynomialFeatures", planters.features_weighted(lambda place, rank: 1 + (place == rank - 1)))
    ],
    "lowrank.feature-tightness": [result("polynomial_error", scaled(50))],
    "lowrank.features": [result("PolynomialFeatures", planters.features_weighted(lambda place, rank: place == 0))],
    "lowrank.real-heads": [result("load_real_heads", planters.logits_nearly_zero)],
    "lowrank.causal": [COMPILED_OFF],
    "lowrank.row-change": [COMPILED_OFF],
    "lowrank.continuous-rows": [COMPILED_OFF],
    "lowrank.distinct-columns": [COMPILED_OFF],
    "lowrank.distinct-rows": [backward("masked_product_backward", field_off("v", 1 + 1e-6), "fast")],
    "lowrank.product-gradients": [result("masked_product_backward", lambda found: field_off(found._fields[0])(found))],
    "lowrank.first-bad-row": [instead("CausalStructure", lambda right: planters.LaxCausal)],
    "lowrank.layouts": [
        instead("shifted_groups", lambda right: lambda n, group, **options: right(n, max(group - 1, 1), **options))
    ],
    "lowrank.linear-time": [grows_like(1.5)],
    "lowrank.attention-bound": [result("lowrank_attention_forward", planters.bound_too_small)],
    "lowrank.attention-gradients": [result("lowrank_attention_backward", field_off("q"))],
    "lowrank.random-unbiased": [instead("RandomFeatures", planters.queries_too_large)],
    "lowrank.random-variance": [instead("RandomFeatures", planters.variance_overstated)],
    "applications.near-rope": [
        result("rope_structured", lambda g: g._replace(k=np.random.default_rng(0).permutation(g.k)))
    ],
    "applications.encoder-exact": [result("chosen_starts", lambda starts: starts[:-1], full_attention)],
    "applications.encoder-structure": [
        instead("chosen_starts", lambda right: lambda kind, n, k: np.arange(n), full_attention)
    ],
    "sparsek.two-solvers": [result("sparsek_operator", scaled(1 + 1e-9))],
    "sparsek.optimality": [result("sparsek_operator", scaled(1 + 1e-9))],
    "sparsek.convex-solver": [result("sparsek_operator", scaled(1.001))],
    "sparsek.sparsemax": [result("sparsek_operator", scaled(1.001))],
    "sparsek.top-k-limit": [instead("sparsek_operator", planters.budget_of_one_more)],
    "sparsek.jacobian": [result("sparsek_jacobian", scaled(1.001))],
    "sparsek.monotone": [result("prefix_thresholds", planters.last_threshold_too_low)],
    "sparsek.two-heaps": [
        instead(
            "prefix_thresholds", lambda right: lambda z, k, method="fast": right(z, k + (method == "fast"))
        )
    ],
    "sparsek.threshold-time": [grows_like(1.2)],
    "sparsek.constant-pairs": [instead("selection_intervals", planters.budget_of_one_more)],
    "sparsek.gate-floor": [instead("selection_intervals", planters.budget_of_one_more)],
    "sparsek.linear-backward": [result("prefix_pullback", scaled(1.001))],
    "sparsek.attention": [backward("sparsek_attention_backward", field_off("scores"), "fast", "paper")],
    "sparsek.gradients": [backward("sparsek_attention_backward", field_off("scores"), "fast", "paper")],
    "sparsek.dense-limit": [result("sparsek_attention", scaled(1.001))],
    "sparsek.causality": [instead("sparsek_attention", planters.last_value_added)],
    "sparsek.running-moments": [result("sparsek_scores_forward", scaled(1.001))],
    "sparsek.fast": [backward("sparsek_attention_backward", field_off("scores"), "fast")],
    "sparsek.fast-float32": [
        backward(
            "sparsek_attention_backward", lambda g: g._replace(k=g.k.astype(np.float16).astype(g.k.dtype)), "fast"
        )
    ],
    "sparsek.fast-bits": [instead("sparsek_attention_backward", planters.differs_from_run_to_run)],
    "sparsek.fast-causality": [instead("sparsek_attention", planters.last_value_added)],
    "sparsek.linear-time": [grows_like(1.2)],
    "sparsek.linear-memory": [instead("_peak", lambda right: lambda n: right(n) + n / 64)],
    "sparsek.speed": [
        instead("_seconds", lambda right: lambda run: 1e3 if "scores" in run.keywords else right(run))
    ],
    "sparsek.cache-replay": [result("sparsek_attention", scaled(1.001))],
    "sparsek.cache-memory": [instead("SparseKCache", planters.larger_every_time)],
    "sparsek.model-gap-256": [RECORDS_WORSE],
    "sparsek.model-gap-128": [RECORDS_WORSE],
    "sparsek.model-gap-128-shared": [RECORDS_WORSE],
    "sparsek.model-gap-256-long": [RECORDS_WORSE],
    "sparsek.model-gap-128-long": [RECORDS_WORSE],
    "sparsek.model-learning": [RECORDS_WORSE],
    "sparsek.model-passkey": [RECORDS_WORSE],
    "classification.conv-decoder": [instead("shipped_rows", planters.answers_of_exact_attention)],
    "classification.conv-encoder": [instead("shipped_rows", planters.answers_of_exact_attention)],
    "classification.sparsek": [instead("shipped_rows", planters.answers_of_exact_attention)],
    "decoder.gradients": [result("rms_norm_backward", field_off("x"), named)],
    "decoder.sparsek-gradients": [result("sparsek_attention_backward", field_off("scores"), sparsek_in_layers)],
    "sparsek.scorer-files": [result("load_scorer", planters.eight_times_as_large)],
    "scratch.recall-1": [planters.study(0.0)],
    "scratch.recall-2": [planters.study(0.0)],
    "scratch.recall-4": [planters.study(0.0)],
    "scratch.conv-lags": [planters.conv_study(0.1)],
    "scratch.conv-bytes": [planters.conv_study(0.1)],
}  # fmt: skip


# The one test of them all.


def verdict(claim, quick):
    (row,) = run_each([claim], quick=quick)
    if row.reason.startswith("needs "):
        pytest.skip(row.reason)
    assert not row.reason, row.reason
    return row.verdict


@pytest.mark.parametrize(
    "claim",
    [pytest.param(claim, id=claim.id, marks=[pytest.mark.long] * (claim.id in TAKE_LONG)) for claim in ALL],
)
def test_the_check_fails_on_what_its_claim_names(claim, monkeypatch):
    module = sys.modules[claim.measure.__module__]
    stand_in = IN_FULL_ONLY.get(claim.id)
    sentences = claim.planted.split("; ")
    for sentence, plant in zip(sentences, PLANTED[claim.id], strict=True):
        without, planted = ((FAILS,), HOLDS) if "the claim then holds" in sentence else ((HOLDS, HOLDS_IF), FAILS)
        with monkeypatch.context() as errors:
            if stand_in is not None:
                stand_in(errors, module)
                assert verdict(claim, quick=False) in without
            plant(errors, module)
            assert verdict(claim, quick=stand_in is None) == planted, sentence


def test_every_claim_names_what_is_planted_and_nothing_else_is_planted():
    assert {claim.id for claim in ALL} == set(PLANTED)
    assert all(claim.planted for claim in ALL)
