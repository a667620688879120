"""The same bits in every process: any number of threads, forked while others compute, spawned, nested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lengths import CAMPAIGN

ROOT = Path(__file__).parents[2]
VARIABLES = ("REFATTN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
WHOLE = "import json, operations; print(json.dumps(operations.digests()))"


@pytest.fixture(scope="module")
def expected():
    """What a process finds that may use two threads of every kind."""
    program, two = [sys.executable, "-c", WHOLE], str(min(2, os.cpu_count() or 1))  # Numba refuses more
    known = {**os.environ, **dict.fromkeys(VARIABLES, two), "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT}"}
    return json.loads(subprocess.run(program, env=known, capture_output=True, check=True, timeout=900).stdout)


@pytest.mark.slow
def test_all_variables_at_one_give_the_bits_of_two_threads(expected, run_python):
    found = json.loads(run_python(WHOLE, **dict.fromkeys(VARIABLES, "1")))
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.campaign
@pytest.mark.parametrize("count", "123")
@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_alone_gives_the_same_bits(variable, count, expected, run_python):
    if variable == "NUMBA_NUM_THREADS" and int(count) > os.cpu_count():
        count = str(os.cpu_count())  # Numba refuses more
    found = json.loads(run_python(WHOLE, **{variable: count}))
    assert [name for name in expected if found[name] != expected[name]] == []


FORK = """
import json, os, signal, sys, threading, time
from operations import OPERATIONS, digest
names = [name for name in OPERATIONS if name.startswith(tuple(sys.argv[2:])) and name.endswith("float64")]
right = {name: digest(OPERATIONS[name]()) for name in names}
done = threading.Event()
def compute(number):
    while not done.is_set():
        for name in names[number:] + names[:number]:
            assert digest(OPERATIONS[name]()) == right[name]
def compile_more():  # while the first children are made
    for name in names:
        OPERATIONS[name.replace("float64", "float32")]()
threads = [threading.Thread(target=compute, args=[number]) for number in range(3)]
threads.append(threading.Thread(target=compile_more))
for thread in threads: thread.start()
status = []
for child in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        signal.alarm(600)  # a child that waits for a lock that nobody holds ends by this
        os._exit(0 if all(digest(OPERATIONS[name]()) == right[name] for name in names) else 1)
    status.append(os.waitpid(pid, 0)[1])
done.set()
for thread in threads: thread.join()
print(json.dumps(status))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    ("kept", "kinds"),
    [
        ("compiled", ("dense full", "sparsek operator", "masked product")),
        pytest.param("compiled", ("conv transform causal", "sparsek soft"), marks=pytest.mark.campaign),
        ("read", ("conv transform causal", "sparsek soft", "dense full", "masked product")),
    ],
    ids=["compiled", "all of conv and SparseK compiled", "read"],
)
def test_children_forked_while_threads_compute_and_compile_find_the_same_bits(kept, kinds, run_python):
    """Or while they read from the disk what others have compiled."""
    children = 100 if CAMPAIGN else 4
    environment = {"REFATTN_CACHE_DIR": "off"} if kept == "compiled" else {}
    assert json.loads(run_python(FORK, str(children), *kinds, **environment)) == [0] * children


PROPERTY = """
import os, signal, threading
from refattn._threads import ComputedOnce
inside, go_on = threading.Event(), threading.Event()
class Slow:
    def __init__(self, waits):
        self.waits = waits
    @ComputedOnce
    def value(self):
        if self.waits:
            inside.set()
            go_on.wait()
        return [self.waits]
first = Slow(True)
thread = threading.Thread(target=lambda: first.value)
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(600)
    os._exit(Slow(False).value[0])
status = os.waitpid(pid, 0)[1]
go_on.set()
thread.join()
print(status, first.value is first.value, first.value)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_a_property_is_computed_computes_its_own(run_python):
    """With functools.cached_property of Python 3.11 it waits for a lock that nobody holds."""
    assert run_python(PROPERTY).split() == ["0", "True", "[True]"]


NESTED = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from operations import OPERATIONS, digest
NAMES = ["conv transform causal float64", "dense full float32", "sparsek hard float32"]
def one(name):
    return digest(OPERATIONS[name]())
def by_threads(names):
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(one, names))
if __name__ == "__main__":
    right = by_threads(NAMES)
    for method in sys.argv[1:]:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            for found in pool.map(by_threads, [NAMES, NAMES], timeout=600):
                assert found == right, method
    print("the same")
"""


@pytest.mark.slow
def test_threads_inside_a_pool_of_processes_spawned_or_forked(run_python):
    methods = ["spawn", "forkserver", "fork"] if hasattr(os, "fork") else ["spawn"]
    assert run_python(NESTED, *methods) == "the same\n"


KERNEL_TESTS = (
    "tests/convbasis/fast/test_blocks.py", "tests/convbasis/fast/test_correlations.py",
    "tests/convbasis/fast/test_recover.py", "tests/sparsek/test_prefix.py", "tests/lowrank/test_products.py",
)  # fmt: skip
QUICK_KERNEL_TESTS = ("tests/convbasis/fast/test_correlations.py", "tests/convbasis/fast/test_recover.py")


@pytest.mark.long
def test_kernels_pass_their_tests_without_compilation():
    """The same functions as Python: an index out of range, silent when compiled, is an error here."""
    tests = KERNEL_TESTS if CAMPAIGN else QUICK_KERNEL_TESTS
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert result.returncode == 0, result.stdout
