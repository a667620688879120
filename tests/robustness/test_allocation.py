"""Memory runs out, anywhere: a clear error, and the next call is right; and no growth over many calls."""

import gc
import json
import sys
from collections import deque

import numpy as np
import pytest
from lengths import CAMPAIGN, long

from refattn import SparseKCache, _fft, _memory, _threads, conv_attention, sparsek_attention
from refattn.convbasis import Plan

LIMITED = """
import json, resource, sys, threading
import numpy as np
import scipy.linalg.blas
from threadpoolctl import threadpool_limits
from operations import OPERATIONS, digest
def fill_blas(threads=4, n=1200):
    # Where OpenBLAS has no memory for the buffer of a product it ends the process; products at once have one each
    def multiply(product, a):
        everyone.wait()
        product(a, a)
    for dtype in (np.float32, np.float64):
        a = np.ones((n, n), dtype)
        for product in (np.dot, lambda a, b: scipy.linalg.blas.get_blas_funcs("gemm", [a])(1, a, b)):
            product(a, a)
            with threadpool_limits(1):
                everyone = threading.Barrier(threads)
                some = [threading.Thread(target=multiply, args=(product, a)) for _ in range(threads)]
                for one in some: one.start()
                for one in some: one.join()
def limit(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    soft = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
names = [name for name in OPERATIONS if name.endswith("float64") and name.startswith(tuple(json.loads(sys.argv[1])))]
fill_blas()
right, found = {name: digest(OPERATIONS[name]()) for name in names}, {}
for name in names:
    found[name] = []
    for more in range(0, 1 << 26, 1 << int(sys.argv[2])):
        limit(more)
        try:
            outcome = "right" if digest(OPERATIONS[name]()) == right[name] else "wrong"
        except MemoryError as error:
            outcome = f"MemoryError: {error}"
        finally:
            limit(None)
        assert digest(OPERATIONS[name]()) == right[name]
        found[name].append(outcome)
        if outcome == "right":
            break
print(json.dumps(found))
"""


@pytest.mark.slow
def test_an_address_space_limit_gives_a_memory_error_and_the_next_call_is_right(run_python):
    every, few = ["conv", "dense", "sparsek", "masked product", "lowrank"], ["conv direct full", "dense blocks"]
    names, finest = (every, "18") if CAMPAIGN else (few, "20")
    given_back = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "4096"}  # arrays, when they are let go of
    found = json.loads(run_python(LIMITED, json.dumps(names), finest, **given_back))
    for name, outcomes in found.items():
        *refused, last = outcomes
        assert last == "right", (name, last)
        assert all(one.startswith("MemoryError: ") and len(one) > 20 for one in refused), (name, refused)
    assert sum(map(len, found.values())) > len(found)  # the limit was felt


ALLOCATORS = ("empty", "zeros", "full", "ones", "empty_like", "zeros_like", "concatenate", "stack")


class Allocator:
    """NumPy's makers of arrays, of which the call with the number `failing` finds no memory."""

    def __init__(self, monkeypatch, failing):
        self.calls, self.failing = 0, failing
        for name in ALLOCATORS:
            monkeypatch.setattr(np, name, self.counted(getattr(np, name)))

    def counted(self, make):
        def allocate(*arguments, **options):
            self.calls += 1
            if self.calls == self.failing:
                raise MemoryError(f"allocation {self.calls}")
            return make(*arguments, **options)

        return allocate


def small(operations):
    return {
        "conv transform": lambda: operations.conv(130, np.float64, "full", "fast", operations.TRANSFORM),
        "conv direct": lambda: operations.conv(60, np.float32, "causal", "fast", operations.DIRECT),
        "conv paper": lambda: operations.conv(40, np.float64, "causal", "paper", None),
        "dense": lambda: operations.dense(60, 8, np.float64, block=20),
        "sparsek": lambda: operations.sparsek_attention(130, np.float64),
        "lowrank": lambda: operations.lowrank_attention(50, np.float64, operations.polynomial),
        "masked product": lambda: operations.masked_product(50, np.float64, "continuous-rows"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(small(None)))
def test_every_allocation_fails_once_and_nothing_is_left_broken(name, operations):
    run = small(operations)[name]
    _threads.set_thread_count(1)  # in one order, so that numbers mean the same from run to run
    try:
        right = operations.digest(run())

        def attempt(failing):
            _fft._shelf = _fft._Shelf()
            _memory._idle.clear()
            with pytest.MonkeyPatch.context() as monkeypatch:
                allocator = Allocator(monkeypatch, failing)
                try:
                    run()
                    refused = None
                except MemoryError as error:
                    refused = str(error)
            assert refused == (f"allocation {failing}" if allocator.calls >= failing else None)
            return allocator.calls

        total = attempt(10**9)
        assert total > 0
        for failing in range(1, total + 1, 1 if CAMPAIGN else max(total // 6, 1)):
            attempt(failing)
            assert operations.digest(run()) == right
            assert _threads._blas_users == 0
    finally:
        _threads.set_thread_count(None)


def test_a_cache_that_ran_out_of_memory_in_a_step_says_by_its_position_what_it_took_in():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 40, 4))
    scores = rng.standard_normal(40)
    right = sparsek_attention(q, k, v, scores, n_select=5, window=3)
    failing = 0
    while True:
        failing += 1
        cache = SparseKCache(n_select=5, window=3)
        cache.prefill(q[:20], k[:20], v[:20], scores[:20])
        with pytest.MonkeyPatch.context() as monkeypatch:
            allocator = Allocator(monkeypatch, failing)
            try:
                cache.step(q[20], k[20], v[20], scores[20])
            except MemoryError:
                assert cache.position in (20, 21)
        for t in range(cache.position, 40):
            found = cache.step(q[t], k[t], v[t], scores[t])
            np.testing.assert_allclose(found, right[t], rtol=0, atol=1e-13)
        if allocator.calls < failing:
            break
    assert failing > 1


def call_with_shape(number, rng, longest):
    """One call of an operation, with a shape of its own."""
    n, d = int(rng.integers(1, longest)), int(rng.integers(1, 12))
    q, k, v = rng.standard_normal((3, n, d)).astype((np.float32, np.float64)[number % 2])
    if number % 3:
        method = "paper" if number % 30 == 1 else "fast"
        plan = Plan("block transform", 64) if number % 5 == 0 and method == "fast" else None
        conv_attention(q, k, v, n_basis=min(3, n), probe=1, delta=0.1, method=method, plan=plan)
    else:
        sparsek_attention(q, k, v, q[:, 0], n_select=int(rng.integers(1, 9)), window=4)
    with _fft.borrowed(_fft.KINDS[number % 4], d, n, q.dtype):
        pass


def held():
    """Entries of every container that a module of the package holds, of every unbounded memo, and of Numba's."""
    found = {}
    for module in [name for name in sys.modules if name.partition(".")[0] == "refattn"]:
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, type):
                continue
            if hasattr(value, "cache_info"):
                if value.cache_info().maxsize is None:
                    found[f"{module}.{name}"] = value.cache_info().currsize
            elif hasattr(value, "nopython_signatures"):
                found[f"{module}.{name}"] = len(value.nopython_signatures)
            elif isinstance(value, (dict, list, set, deque)) and not name.startswith("__"):
                found[f"{module}.{name}"] = len(value)
    return found


def test_nothing_that_the_package_keeps_grows_with_the_number_of_shapes():
    rng = np.random.default_rng(0)
    for number in range(60):  # every operation, in both dtypes
        call_with_shape(number, rng, 300)
    before = held()
    assert {"refattn._memory._idle", "refattn.convbasis.fast.blocks_loops.add_window_sums"} <= before.keys()
    for number in range(240):
        call_with_shape(number, rng, 300)
        assert _fft._shelf.count <= _fft.KEPT_TRANSFORMS
        assert _fft._shelf.nbytes <= _fft.KEPT_BYTES
        assert sum(buffer.nbytes for buffer in _memory._idle) <= _memory.KEPT_BYTES
    assert _fft._shelf.count == _fft.KEPT_TRANSFORMS  # there were more shapes than are kept
    assert held() == before


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as line:
        return int(line.read().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("longest", [300, *long(2000)])
def test_memory_levels_off_over_calls_of_changing_shapes(longest, capsys):
    """Resident memory: after a fifth of the calls there are no new plans to keep, and the heap finds its size."""
    calls = 10_000 if CAMPAIGN else 300
    rng, sizes = np.random.default_rng(0), []
    for number in range(calls):
        call_with_shape(number, rng, longest)
        if number % (calls // 10) == calls // 10 - 1:
            gc.collect()
            sizes.append(resident_bytes())
    with capsys.disabled():
        print(f" {calls} calls, resident MB: {[size >> 20 for size in sizes]}", end="")
    assert sizes[-1] - sizes[0] <= 64 << 20
    if CAMPAIGN:
        assert sizes[-1] - sizes[len(sizes) // 5 - 1] <= 16 << 20
