"""Every row of the ledger has a planted error on which its check is seen to fail, and the report names it."""

import ast
import dataclasses
import pkgutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import refattn.laboratory.real_heads
import refattn.models
from refattn.convbasis import recovery
from refattn.report import claims
from refattn.report.claims import ALL
from refattn.report.claims import convbasis as convbasis_claims
from refattn.report.claims import dense as dense_claims
from refattn.report.claims import inference as inference_claims
from refattn.report.claims import model as model_claims
from refattn.report.claims import real_heads as real_heads_claims
from refattn.report.claims import recover as recover_claims
from refattn.report.claims import training as training_claims
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, run_each
from refattn.report.planted import PLANTED as DESCRIBED
from refattn.testing.real_heads import load_real_heads

BY_ID = {claim.id: claim for claim in ALL}


def verdict(claim_id):
    (row,) = run_each([BY_ID[claim_id]], quick=True)
    assert not row.broke, row.reason
    return row.verdict


def changed(module, name, change):
    """Plant a function whose result is changed."""

    def plant(monkeypatch):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **options: change(right(*args, **options)))

    return plant


def a_masked_row_gets_something(found):
    out, cache = found
    return out + 1e-3 * (np.arange(len(out)) == 2)[:, None], cache


def half_precision(monkeypatch):
    right = dense_claims.dense_attention

    def wrong(q, k, v):
        out = right(q, k, v)
        return out.astype(np.float16).astype(np.float32) if q.dtype == np.float32 else out

    monkeypatch.setattr(dense_claims, "dense_attention", wrong)


def one_entry_off(matrix):
    matrix = matrix.copy()
    matrix[-1, -1] += 1
    return matrix


def wild_logits(monkeypatch):
    """The logits inside the condition, which are drawn first, 80 times as large."""
    right, factors = np.random.default_rng, iter((80.0, 1.0, 1.0))

    class Wild:
        def __init__(self, seed):
            self.rng, self.factor = right(seed), next(factors)

        def standard_normal(self, shape):
            return self.factor * self.rng.standard_normal(shape)

    monkeypatch.setattr(np.random, "default_rng", Wild)


def start_off_by_one(monkeypatch):
    right = recovery.search

    def late(predicate, s, t):
        found = right(predicate, s, t)
        return None if found is None else min(found + 1, t)

    monkeypatch.setattr(recovery, "search", late)


def quadratic_memory(monkeypatch):
    right = recover_claims.conv_attention

    def wasteful(q, k, v, **options):
        held = np.empty((len(q), len(q)))
        return right(q, k, v, **options) + 0 * held.shape[0]

    monkeypatch.setattr(recover_claims, "conv_attention", wasteful)


def copies_of_v(monkeypatch):
    right = training_claims.conv_attention_backward

    def wasteful(dout, cache, **options):
        held = np.empty((40, *dout.shape), dout.dtype)
        assert held.nbytes == 40 * dout.nbytes
        return right(dout, cache, **options)

    monkeypatch.setattr(training_claims, "conv_attention_backward", wasteful)


def steep(monkeypatch):
    monkeypatch.setattr(inference_claims, "_seconds", lambda function, repeat=1: len(function.args[0]) ** 1.5)


def bolder(given):
    return given._replace(delta=3 * given.delta)


def last_start_moved(given):
    return given._replace(starts=given.starts + (np.arange(4) == 3))


PLANTED = [
    ("dense.masked-rows", changed(dense_claims, "dense_attention_forward", a_masked_row_gets_something)),
    ("dense.float32", half_precision),
    ("dense.torch", changed(dense_claims, "dense_attention_backward", lambda g: g._replace(q=1.001 * g.q))),
    ("conv.additivity", changed(convbasis_claims, "subconv_matrix", one_entry_off)),
    ("conv.exp-transform-differences", wild_logits),
    ("conv.rope", changed(convbasis_claims, "basis_from_starts", lambda b: type(b)(b.starts, (1 + 1e-6) * b.kernels))),
    ("conv.algorithm-1-rows", changed(convbasis_claims, "algorithm_1", lambda out: np.roll(out, 1, axis=0))),
    ("recover.first-columns", start_off_by_one),
    ("recover.memory", quadratic_memory),
    ("recover.monotone", changed(inference_claims, "noisy", bolder)),
    ("recover.logits", changed(inference_claims, "noisy", last_start_moved)),
    ("conv.product-time", steep),
    ("inference.time", steep),
    ("training.time", changed(training_claims, "_exponent", lambda found: (1.5, found[1]))),
    ("training.memory", copies_of_v),
]

TIMED = ("conv.product-time", "inference.time", "training.time")  # a busy machine must not fail a test


@pytest.mark.parametrize(("claim_id", "plant"), PLANTED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_planted_error_is_seen(claim_id, plant, monkeypatch):
    if claim_id == "dense.torch":
        pytest.importorskip("torch")
    if claim_id not in TIMED:
        assert verdict(claim_id) in (HOLDS, HOLDS_IF)
    plant(monkeypatch)
    assert verdict(claim_id) == FAILS


def shorter(heads):
    return dataclasses.replace(heads, **{name: getattr(heads, name)[..., :512, :] for name in ("q", "k", "v")})


PLANTED_RIGHT = [
    ("real.conv-structure", changed(real_heads_claims, "load_real_heads", shorter)),
    ("real.theorem-condition", changed(real_heads_claims, "closeness", lambda m: m._replace(eps=1e-6 * m.eps))),
]


@pytest.mark.parametrize(("claim_id", "plant"), PLANTED_RIGHT, ids=lambda x: x if isinstance(x, str) else "")
def test_a_verdict_that_something_does_not_hold_can_change(claim_id, plant, monkeypatch):
    plant(monkeypatch)
    assert verdict(claim_id) == HOLDS


class Decoder:
    """Stands for the language model: of a given perplexity, and a given one with conv attention."""

    def __init__(self, exact, replaced):
        self.exact, self.replaced = exact, replaced

    def from_gguf(self, path, **options):
        return self

    def perplexity(self, tokens, attention=None):
        return self.exact if attention is None else self.replaced


PLANTED_IN_FULL_ONLY = [
    ("model.perplexity", Decoder(24.59, 0.0), HOLDS),
    ("model.perplexity", Decoder(24.59 * 1.02, 0.0), FAILS),
    ("model.conv-perplexity", Decoder(24.59, 178.0), FAILS),
    ("model.conv-perplexity", Decoder(24.59, 24.6), HOLDS),
]


@pytest.mark.parametrize(("claim_id", "decoder", "expected"), PLANTED_IN_FULL_ONLY)
def test_the_model_s_verdicts_follow_from_its_perplexity(claim_id, decoder, expected, monkeypatch):
    monkeypatch.setattr(refattn.models, "Llama", decoder)
    monkeypatch.setattr(refattn.models, "smollm2_path", lambda: None)
    monkeypatch.setattr(model_claims, "_essay", lambda: np.arange(8))
    assert BY_ID[claim_id].measure(False).verdict == expected


PLANTED_HEADS = ["model.shipped-heads"]


@pytest.mark.parametrize(("steps", "expected"), [(0, HOLDS), (2, FAILS)])
def test_shipped_heads_that_the_model_does_not_compute_are_seen(steps, expected, monkeypatch):
    shipped = load_real_heads()
    q = np.asarray(shipped.q, dtype=np.float16).copy()
    place = np.unravel_index(np.abs(q).argmax(), q.shape)
    for _ in range(steps):
        q[place] = np.nextafter(q[place], np.float16(np.inf))
    monkeypatch.setattr(refattn.models, "Llama", Decoder(0.0, 0.0))
    monkeypatch.setattr(refattn.models, "smollm2_path", lambda: None)
    monkeypatch.setattr(
        refattn.laboratory.real_heads, "compute_heads", lambda *args: {"q": q, "k": shipped.k, "v": shipped.v}
    )
    assert BY_ID["model.shipped-heads"].measure(False).verdict == expected


def planted_in_tests():
    """Ids in the lists of planted errors, and in the tests that a verdict can change, of all test modules."""
    found = set()
    for file in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            listed = any(name.startswith("PLANTED") for name in names)
            if listed or "can_change" in getattr(node, "name", "") or "larger_scorers" in getattr(node, "name", ""):
                found |= {x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and x.value in BY_ID}
    return found


def test_every_row_has_a_planted_error_in_the_tests():
    assert set(BY_ID) - planted_in_tests() == set()


def test_the_report_names_the_planted_error_of_every_row_and_of_no_other():
    modules = (import_module(f"{claims.__name__}.{found.name}") for found in pkgutil.iter_modules(claims.__path__))
    known = {claim.id for module in modules for claim in module.CLAIMS}
    assert set(BY_ID) <= set(DESCRIBED) <= known
