from __future__ import annotations

import importlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from refattn import dense_attention
from refattn._threads import set_thread_count
from refattn.sparsek import sparsek_attention, sparsek_attention_backward, sparsek_attention_forward
from refattn.testing import check_gradients, relative_error, row_errors, tolerance
from refattn.testing.real_heads import load_real_heads

GATES = ("kv", "k", "v", "none")
KINDS = [pytest.param(gate, hard, id=f"{gate}-{'hard' if hard else 'soft'}") for gate in GATES for hard in (0, 1)]


def _inputs(seed, n, lead_q=(), lead_kv=(), d=3, d_v=2, dtype=np.float64):
    rng = np.random.default_rng(seed)
    arrays = {
        "q": rng.standard_normal((*lead_q, n, d)),
        "k": rng.standard_normal((*lead_kv, n, d)),
        "v": rng.standard_normal((*lead_kv, n, d_v)),
        "scores": 0.7 * rng.standard_normal((*lead_kv, n)),
    }
    return {name: array.astype(dtype) for name, array in arrays.items()}


def _run(inputs, options, method="fast"):
    """Output and gradients, with the same upstream gradient for every method."""
    out, cache = sparsek_attention_forward(**inputs, **options, method=method)
    upstream = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
    return {"out": out} | sparsek_attention_backward(upstream, cache)._asdict()


def _require_agreement(inputs, options, *, reference="oracle", rtol=1e-12):
    """The checker: every row of the output, and every gradient."""
    found, right = _run(inputs, options), _run(inputs, options, reference)
    assert row_errors(found.pop("out"), right.pop("out")).max() <= rtol
    for name, gradient in found.items():
        assert gradient.shape == inputs[name].shape
        assert relative_error(gradient, right[name]) <= rtol, name


@pytest.fixture(params=[pytest.param(16, id="blocks of 16"), pytest.param(128, id="blocks of 128")])
def blocks(request, monkeypatch):
    monkeypatch.setattr(importlib.import_module("refattn.sparsek._fast_blocks"), "_MOST_ROWS", request.param)


@pytest.mark.parametrize(("gate", "hard"), KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 131], ids=lambda n: f"n={n}")
def test_fast_equals_the_oracle_with_every_option(blocks, n, gate, hard):
    inputs = _inputs(n, n)
    for n_select, window in itertools.product((0, 1, 17, n), (0, 1, 5, n)):
        options = {"n_select": n_select, "window": window, "gate": gate, "hard": bool(hard)}
        _require_agreement(inputs, options)


@pytest.mark.slow
@pytest.mark.parametrize(("n_select", "window"), [(0, 7), (1, 0), (17, 32), (40, 1), (500, 0), (3, 500)])
def test_fast_equals_paper_over_many_blocks_and_chunks(monkeypatch, n_select, window):
    monkeypatch.setattr(importlib.import_module("refattn.sparsek._fast_blocks"), "_MOST_ROWS", 16)
    for gate, hard in (("kv", False), ("v", True)):
        options = {"n_select": n_select, "window": window, "gate": gate, "hard": hard}
        _require_agreement(_inputs(2, 500), options, reference="paper")


SEQUENCES = {
    "random": lambda rng, n: rng.standard_normal(n),
    "rising": lambda rng, n: np.linspace(-3, 3, n),
    "falling": lambda rng, n: np.linspace(3, -3, n),
    "constant": lambda rng, n: np.full(n, 0.3),
    "tied": lambda rng, n: rng.choice([0.0, 0.37, 1.21], n),  # no entry exactly at a kink
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(n),
    "drifting": lambda rng, n: rng.standard_normal(n) + 0.02 * np.arange(n),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_fast_equals_the_oracle_on_scores_of_every_kind(blocks, kind):
    inputs = _inputs(3, 200) | {"scores": SEQUENCES[kind](np.random.default_rng(4), 200)}
    inputs["q"] = 8 * inputs["q"]  # logits of deviation 8
    for n_select, window in ((6, 4), (17, 0)):
        _require_agreement(inputs, {"n_select": n_select, "window": window})


@pytest.mark.slow
def test_fast_equals_paper_on_heads_of_a_language_model_scored_by_key_norms():
    real = load_real_heads(dtype=np.float64)
    inputs = {name: getattr(real, name)[1:3, ..., :400, :] for name in ("q", "k", "v")}
    inputs["scores"] = -np.linalg.norm(inputs["k"], axis=-1)
    _require_agreement(inputs, {"n_select": 32, "window": 16}, reference="paper", rtol=1e-10)


LAYOUTS = [
    pytest.param((2, 6), (2, 3), id="grouped heads"),
    pytest.param((4,), (1,), id="one key-value head"),
    pytest.param((2, 1), (2, 3), id="one query head"),
    pytest.param((), (3,), id="queries broadcast"),
]


@pytest.mark.parametrize(("lead_q", "lead_kv"), LAYOUTS)
def test_fast_equals_the_oracle_with_leading_axes(lead_q, lead_kv):
    _require_agreement(_inputs(5, 70, lead_q, lead_kv), {"n_select": 9, "window": 7})


def test_scores_and_strided_arrays_broadcast():
    inputs = _inputs(6, 70, (2, 4), (2, 4)) | {"scores": _inputs(7, 70)["scores"]}
    inputs["k"] = np.asfortranarray(inputs["k"])
    inputs["v"] = inputs["v"][..., ::-1]
    _require_agreement(inputs, {"n_select": 9, "window": 7})


@pytest.mark.parametrize(("gate", "hard"), KINDS)
def test_gradients_equal_directional_differences(away_from_kinks, gate, hard):
    options = {"n_select": 3, "window": 2, "gate": gate, "hard": bool(hard)}
    inputs = _inputs(8, 12) | {"scores": away_from_kinks(8, 12, 3)}
    _, cache = sparsek_attention_forward(**inputs, **options)
    point = {name: array for name, array in inputs.items() if not (hard and name == "scores")}

    def gradients(upstream):
        return sparsek_attention_backward(upstream, cache)._asdict()

    # the straight-through gradient of the scores is no derivative of the forward; it is compared with the oracle above
    fixed = {"scores": inputs["scores"]} if hard else {}
    check_gradients(
        lambda **moved: sparsek_attention(**moved, **fixed, **options),
        gradients,
        point,
        rtol=tolerance("differences").rtol,
        step=1e-4,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("n_select", "window"), [(17, 0), (17, 9), (5, 150)])
def test_changing_the_future_changes_no_earlier_row_bit_for_bit(blocks, n_select, window, dtype):
    inputs, rng = _inputs(9, 300, d=16, d_v=16, dtype=dtype), np.random.default_rng(10)
    for gate, hard in (("kv", False), ("none", False), ("kv", True)):
        options = {"n_select": n_select, "window": window, "gate": gate, "hard": hard}
        before = sparsek_attention(**inputs, **options)
        for t in (1, 17, 130, 143, 144, 299):
            later = {name: array.copy() for name, array in inputs.items()}
            for array in later.values():
                array[t:] = 5 * rng.standard_normal(array[t:].shape)
            after = sparsek_attention(**later, **options)
            np.testing.assert_array_equal(after[:t], before[:t])
            assert (after[t:] != before[t:]).any()


@pytest.fixture
def threads():
    yield set_thread_count
    set_thread_count(None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_one_thread_and_two_and_every_run_give_the_same_bits(threads, dtype):
    inputs = _inputs(11, 3000, (4,), (2,), d=16, d_v=16, dtype=dtype)
    options = {"n_select": 40, "window": 24}
    runs = []
    for count in (1, 2, 2, 3):
        threads(count)
        runs.append(_run(inputs, options))
    for name, array in runs[0].items():
        for other in runs[1:]:
            np.testing.assert_array_equal(other[name], array)


def test_calls_from_many_threads_at_once_leave_the_blas_as_they_found_it():
    inputs, options, found = _inputs(12, 600, d=8, d_v=8), {"n_select": 20, "window": 20}, []
    before = threadpool_info()
    callers = [threading.Thread(target=lambda: found.append(_run(inputs, options))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert threadpool_info() == before
    assert len(found) == 4
    for run in found[1:]:
        for name, array in run.items():
            np.testing.assert_array_equal(array, found[0][name])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork with threads
def test_a_child_forked_after_a_parallel_call_computes_the_same(threads):
    threads(2)
    inputs, options = _inputs(19, 3000, d=8, d_v=8), {"n_select": 20, "window": 20}
    right = _run(inputs, options)
    child = os.fork()
    if child == 0:
        try:
            found = _run(inputs, options)
            os._exit(0 if all((found[name] == right[name]).all() for name in right) else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 600
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0


@pytest.mark.slow
def test_single_precision_is_as_accurate_as_the_plain_dense_computation():
    narrow = _inputs(13, 400, d=32, d_v=32, dtype=np.float32)
    exact = {name: array.astype(np.float64) for name, array in narrow.items()}
    options = {"n_select": 32, "window": 32}
    fast, plain = _run(narrow, options), _run(narrow, options, "oracle")
    right = _run(exact, options, "oracle")
    assert all(array.dtype == np.float32 for array in fast.values())
    for name in ("out", "q", "k", "v"):
        ours, theirs = row_errors(fast[name], right[name]), row_errors(plain[name], right[name])
        assert ours.max() <= 2 * theirs.max(), name
        assert np.median(ours) <= 2 * np.median(theirs), name
    assert relative_error(fast["scores"], right["scores"]) <= 2 * relative_error(plain["scores"], right["scores"])


def test_logits_far_apart_and_all_equal_stay_finite():
    inputs = _inputs(14, 200, dtype=np.float32)
    for factor in (0.0, 1e4):
        for name, array in _run(inputs | {"q": np.float32(factor) * inputs["q"]}, {"n_select": 9, "window": 5}).items():
            assert np.isfinite(array).all(), name
    everything = sparsek_attention(**inputs, n_select=200, window=0)
    assert row_errors(everything, dense_attention(*(inputs[name] for name in "qkv"))).max() <= 1e-5


HUGE = np.full((150, 3), 1e200)
BAD = [
    pytest.param({"q": HUGE, "k": HUGE}, "a logit of query 0", id="to infinity"),
    pytest.param({"q": HUGE, "k": -HUGE}, "a logit of query 0", id="to −∞"),
    pytest.param({"scale": 1e308, "q": np.full((150, 3), 1e9)}, "a logit of query", id="by the scale"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_logit_that_overflows_is_refused_and_the_next_call_works(change, message):
    inputs = _inputs(15, 150)
    with pytest.raises(ValueError, match=f"q, k: {message}"):
        sparsek_attention(**{**inputs, "n_select": 4, "window": 3, **change})
    assert np.isfinite(sparsek_attention(**inputs, n_select=4, window=3)).all()


def test_what_no_query_attends_to_may_be_anything_unchecked_but_no_nan_comes_out():
    inputs = _inputs(16, 100)
    inputs["scores"][10] = -100.0
    inputs["k"][10] = np.nan
    options = {"n_select": 4, "window": 0, "check_finite": False}
    with pytest.raises(ValueError, match="a logit of query 10"):  # at first there is room for every pair
        sparsek_attention(**inputs, **{**options, "n_select": 12})
    out = sparsek_attention(**inputs, **options)
    assert np.isfinite(out).all()
    inputs["v"][10] = np.nan
    with pytest.raises(ValueError, match="v: output: nan"):
        sparsek_attention(**inputs, **options)


def test_no_array_grows_with_the_square_of_the_length():
    peaks = []
    for n in (4096, 16_384):
        inputs = _inputs(17, n, d=32, d_v=32, dtype=np.float32)
        _run(inputs, {"n_select": 64, "window": 64})
        tracemalloc.start()
        _run(inputs, {"n_select": 64, "window": 64})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 5 * peaks[0]
    assert peaks[1] <= 16 * inputs["v"].nbytes  # five of them are results


CLIP = "min(max(score - threshold[i], 0.0), 1.0)"
MUTANTS = [
    ("an interval's end off by one", "loops", "exits[earlier[c]] > first", "exits[earlier[c]] > first + 1"),
    ("the future seen", "loops", "begin = max(j - first, 0)", "begin = 0"),
    ("evicted late", "loops", "max(enter, min(leaves - first, rows))", "max(enter, min(leaves - first + 1, rows))"),
    ("gate dropped on k", "loops", f"went[i] = came[i] * {CLIP}", "went[i] = came[i]"),
    ("gate dropped on v", "loops", f"row[i] *= {CLIP}", "pass"),
    ("gate dropped in the gradient of q and k", "loops", "dlogit * gate_k", "dlogit"),
    ("gates at one differentiated", "loops", "dm if m > 0.0 and m < 1.0 else 0.0", "dm"),
    ("a gradient off by a thousandth", "loops", "dv[h, place], dvalues[h, c]", "dv[h, place], 1.001 * dvalues[h, c]"),
    ("a missing 1/√d", "blocks", "logits *= self.scale", "pass"),
    ("a missing 1/√d in the gradient", "blocks", "dq[:, rows] *= block.scale", "pass"),
    ("a missing 1/√d in the gradient of the keys", "blocks", "dkeys *= block.scale", "pass"),
    (
        "the window forgotten",
        "fast",
        "by_query[heads.numbers, window:]",
        "by_query[heads.numbers, : scores.shape[1] - window]",
    ),
    ("a pair lost", "fast", "came[exits[came] > first]", "came[exits[came] > first][1:]"),
]


@pytest.mark.parametrize(("where", "right", "wrong"), [pytest.param(*m[1:], id=m[0]) for m in MUTANTS])
def test_an_error_planted_in_the_fast_path_is_caught(plant, monkeypatch, where, right, wrong):
    blocks = importlib.import_module("refattn.sparsek._fast_blocks")
    monkeypatch.setattr(blocks, "_MOST_ROWS", 16)
    inputs, options = _inputs(18, 150), {"n_select": 5, "window": 3}
    _require_agreement(inputs, options)
    names = {"loops": "_fast_loops", "blocks": "_fast_blocks", "fast": "fast"}
    mutant = plant(f"refattn.sparsek.{names[where]}", right, wrong)
    if where == "loops":
        monkeypatch.setattr(blocks, "loops", mutant)
    elif where == "blocks":
        monkeypatch.setattr(blocks, "Block", mutant.Block)
        monkeypatch.setattr(blocks, "forward_chunk", mutant.forward_chunk)
        monkeypatch.setattr(blocks, "backward_chunk", mutant.backward_chunk)
    else:
        methods = importlib.import_module("refattn.sparsek.attention")._METHODS
        monkeypatch.setitem(methods, "fast", mutant)
    with pytest.raises((AssertionError, IndexError)):
        _require_agreement(inputs, options)


@pytest.mark.slow
def test_the_compiled_loops_run_as_python_with_compilation_off():
    script = (
        "import numpy as np\n"
        "from refattn.sparsek import sparsek_attention_backward as b, sparsek_attention_forward as f\n"
        "x = np.random.default_rng(0).standard_normal((3, 40, 2)); z = x[0, :, 0]; runs = []\n"
        "for method in ('fast', 'oracle'):\n"
        "    out, cache = f(*x, z, n_select=4, window=3, method=method); runs.append((out, *b(out, cache)))\n"
        "assert all(np.allclose(*pair, rtol=1e-10, atol=1e-12) for pair in zip(*runs))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"NUMBA_DISABLE_JIT": "1", "PATH": ""})


def test_importing_the_package_does_not_load_the_compiler():
    script = "import sys, refattn.sparsek; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
