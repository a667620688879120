"""Many threads at once get the bits that one alone gets; first calls race; the interpreter ends; no thread is left."""

import threading
import time

import numpy as np
import pytest
from lengths import CAMPAIGN

from refattn import _fft, _threads

MIXED = (
    "conv transform causal", "conv transform full float32", "conv direct", "conv guarded causal",
    "conv grouped", "conv paper",
    "dense causal", "dense blocks", "sparsek soft", "sparsek hard float32", "sparsek generation", "sparsek scores",
    "masked product causal", "masked product distinct-rows", "lowrank random", "lowrank polynomial",
)  # fmt: skip


@pytest.fixture
def mixed(operations):
    """The operations that threads are given, with the digest that one thread alone finds."""
    chosen = {name: run for name, run in operations.OPERATIONS.items() if name.startswith(MIXED)}
    _threads.set_thread_count(1)
    try:
        expected = {name: operations.digest(run()) for name, run in chosen.items()}
    finally:
        _threads.set_thread_count(None)
    yield chosen, expected
    _threads.set_thread_count(None)


def in_threads(work, count=8):
    failures = []

    def one(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.slow
def test_eight_threads_with_mixed_operations(operations, mixed, capsys):
    chosen, expected = mixed
    names, wrong, calls = sorted(chosen), [], []
    end = time.monotonic() + (60 if CAMPAIGN else 2)

    def work(number):
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            name = names[rng.integers(len(names))]
            if number == 0:  # the pool is replaced while the others use it
                _threads.set_thread_count(int(rng.integers(1, 4)))
            calls.append(name)
            if operations.digest(chosen[name]()) != expected[name]:
                wrong.append(name)

    in_threads(work)
    with capsys.disabled():
        print(f" {len(calls)} calls of {len(set(calls))} operations", end="")
    assert not wrong
    assert _fft._shelf.nbytes <= _fft.KEPT_BYTES


@pytest.mark.slow
def test_plans_of_every_effort_are_made_while_others_compute(operations):
    """Measured plans may have other last bits: results stay within rounding."""
    names = [f"conv transform {mask} float64" for mask in ("causal", "full")]
    expected = {name: operations.OPERATIONS[name]() for name in names}
    end = time.monotonic() + (20 if CAMPAIGN else 1)

    def work(number):
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            if number == 0:
                _fft.set_planner_effort(("estimate", "measure")[rng.integers(2)])
            name = names[rng.integers(2)]
            for found, right in zip(operations.OPERATIONS[name](), expected[name], strict=True):
                np.testing.assert_allclose(found, right, rtol=0, atol=1e-10 * max(np.abs(right).max(), 1))

    try:
        in_threads(work)
    finally:
        _fft.set_planner_effort("estimate")


FIRST_CALLS = """
import json, threading
from operations import OPERATIONS, digest
names = ["conv transform causal float64", "masked product causal float64", "sparsek soft float64"]
start, found = threading.Barrier(8), [None] * 8
def work(number):
    start.wait()
    found[number] = {name: digest(OPERATIONS[name]()) for name in names[number % 3:] + names[:number % 3]}
threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert all(one == found[0] for one in found), found
print(json.dumps(found[0]))
"""


@pytest.mark.slow
def test_eight_first_calls_at_once_compile_and_import_once_and_right(operations, run_python):
    import json

    for name, found in json.loads(run_python(FIRST_CALLS)).items():
        assert found == operations.digest(operations.OPERATIONS[name]())


ENDING = """
import threading
import numpy as np
import refattn
from refattn._threads import set_thread_count
set_thread_count(3)
x = np.random.default_rng(0).standard_normal((2000, 4))
right = refattn.dense_attention(x, x, x)
def work():
    threading.main_thread().join()
    assert np.array_equal(refattn.dense_attention(x, x, x), right)
    print("the same")
threading.Thread(target=work).start()
"""


@pytest.mark.slow
def test_a_thread_that_outlives_the_main_one_computes_on(run_python):
    assert run_python(ENDING) == "the same\n"


@pytest.mark.parametrize("started", [0, 1, 2])
def test_where_threads_cannot_be_started_the_caller_does_the_work(started, monkeypatch):
    """As under an address-space limit, in which no stack fits: `started` threads of four can be had."""
    right, begun = threading.Thread.start, []

    def start(thread):
        if len(begun) == started:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        right(thread)

    _threads.set_thread_count(5)
    try:
        monkeypatch.setattr(threading.Thread, "start", start)
        done = []
        _threads.for_each(lambda item: (time.sleep(0.001), done.append(item)), range(50))
        assert sorted(done) == list(range(50))
        with pytest.raises(ValueError, match="item 7"):
            _threads.for_each(refuse_from_7_on, range(50))
        monkeypatch.undo()
        _threads.for_each(done.append, range(50))
        assert sorted(done) == sorted(2 * list(range(50)))
    finally:
        _threads.set_thread_count(None)


def refuse_from_7_on(item):
    time.sleep(0.001 * (item == 7))  # later than those after it
    if item >= 7:
        raise ValueError(f"item {item}")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_exception_is_that_of_the_first_item_whatever_the_number_of_threads(count):
    _threads.set_thread_count(count)
    try:
        for _ in range(20):
            with pytest.raises(ValueError, match=r"item 7$"):
                _threads.for_each(refuse_from_7_on, range(30))
    finally:
        _threads.set_thread_count(None)
