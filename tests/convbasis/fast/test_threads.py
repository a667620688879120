"""The same bits with any number of threads and from run to run; forks, foreign backends and no compilation."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from refattn import _threads, conv_attention
from refattn.convbasis.fast.cost import Plan
from refattn.testing import rope_structured

PLANS = {"direct": Plan("direct"), "block transform": Plan("block transform", 64)}


@pytest.fixture
def threads():
    yield _threads.set_thread_count
    _threads.set_thread_count(None)


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_the_same_bits_with_1_2_and_3_threads_and_again(dtype, plan, mask, threads):
    q, k, v, _ = rope_structured(1500, 16, starts=9, seed=0, deviation=4.0, dtype=dtype)
    results = []
    for count in (1, 2, 3, 2):
        threads(count)
        results.append(conv_attention(q, k, v, n_basis=9, probe=4, delta=1e-2, mask=mask, plan=plan))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_many_callers_at_once(threads):
    threads(2)
    problems = [rope_structured(n, 8, starts=4, seed=n) for n in (100, 700, 1000)]
    options = {"n_basis": 4, "probe": 4, "delta": 1e-3, "plan": Plan("block transform", 64)}
    expected = [conv_attention(q, k, v, **options) for q, k, v, _ in problems]
    wrong = []

    def work():
        for _ in range(5):
            for (q, k, v, _), right in zip(problems, expected, strict=True):
                if not np.array_equal(conv_attention(q, k, v, **options), right):
                    wrong.append(len(q))

    callers = [threading.Thread(target=work) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


SCRIPT = """
import os, sys
import numpy as np
import refattn
from refattn.convbasis.fast.cost import Plan
from refattn.testing import rope_structured
assert "numba" not in sys.modules and "pyfftw" not in sys.modules, "imported too early"
q, k, v, _ = rope_structured({n}, 6, starts=3, seed=0, dtype=np.float32)
def run():
    parts = [refattn.conv_attention(q, k, v, n_basis=3, probe=2, delta=1e-2, mask=mask, plan=plan)
             for mask in ("causal", "full") for plan in (Plan("direct"), Plan("block transform", 16))]
    return np.stack(parts)
out = run()
right = np.stack([refattn.conv_attention(q, k, v, n_basis=3, probe=2, delta=1e-2, mask=mask, method="oracle")
                  for mask in ("causal", "causal", "full", "full")])
assert np.abs(out - right).max() <= 1e-5 * np.abs(v).max()
{after}
print(out.tobytes().hex())
"""
FORK = """
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(run(), out) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(run(), out)
"""


def run_script(n=70, after="", **environment):
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT.format(n=n, after=after)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_without_compilation():
    run_script(n=40, NUMBA_DISABLE_JIT="1")


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_without_fftw(dtype, mask, monkeypatch):
    q, k, v, _ = rope_structured(331, 6, starts=5, seed=0, dtype=dtype)
    options = {"n_basis": 5, "probe": 4, "delta": 1e-2, "mask": mask}
    right = conv_attention(q, k, v, method="oracle", **options)
    monkeypatch.setenv("REFATTN_FFT", "scipy")
    for block in (1, 7, 64, 512):
        out = conv_attention(q, k, v, plan=Plan("block transform", block), **options)
        np.testing.assert_allclose(out, right, rtol=0, atol=(1e-13 if dtype == np.float64 else 1e-5) * np.abs(v).max())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_after_use_works_and_threads_come_from_the_environment(threads):
    elsewhere = run_script(after=FORK, OMP_NUM_THREADS="2")
    threads(1)
    q, k, v, _ = rope_structured(70, 6, starts=3, seed=0, dtype=np.float32)
    options = {"n_basis": 3, "probe": 2, "delta": 1e-2}
    out = [
        conv_attention(q, k, v, mask=mask, plan=plan, **options)
        for mask in ("causal", "full")
        for plan in (Plan("direct"), Plan("block transform", 16))
    ]
    assert elsewhere.strip() == np.stack(out).tobytes().hex()


def test_an_exception_in_a_thread_is_raised_and_the_pool_lives_on(threads):
    threads(3)

    def fail(item):
        if item == 5:
            raise ValueError("item 5")

    for _ in range(3):
        with pytest.raises(ValueError, match="item 5"):
            _threads.for_each(fail, range(20))
    seen = []
    _threads.for_each(seen.append, range(100))
    assert sorted(seen) == list(range(100))


def test_the_number_of_threads(monkeypatch, threads):
    threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert _threads.thread_count() == 3
    monkeypatch.setenv("REFATTN_NUM_THREADS", "4")
    assert _threads.thread_count() == 4
    threads(2)
    assert _threads.thread_count() == 2
    with pytest.raises(ValueError, match="threads: 0 came"):
        threads(0)
