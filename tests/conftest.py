"""Skips are for machines that lack an optional package; where all are installed, a skip is a failure.

``@pytest.mark.needs("gguf", …)`` skips a test where one of the modules is missing.

JAX is not counted: it is one peer among several, and large.

What takes long is marked ``long``, and left out without ``--long`` (`lengths`).

Compiled loops are kept for the run: in a folder that all its processes share, unless ``REFATTN_CACHE_DIR`` names one.

BLAS and PyTorch have one thread in each of the run's processes: their arrays here are small, and threads that wait for
one another take the time of the tests beside them.

What several folders draw from (`decades`, `lengths`) can be imported.
"""

import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the tests marked long as well")
    parser.addoption("--campaign", action="store_true", help="--long, with the repetitions of a campaign: hours")


def pytest_configure(config):
    """Set what workers, and whatever process a test starts, inherit; keep the tests out of the user's cache."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if config.getoption("campaign"):
        os.environ["REFATTN_CAMPAIGN"] = "1"
    if "REFATTN_CACHE_DIR" not in os.environ:
        os.environ["REFATTN_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="refattn-loops-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_report_header(config):
    return None if _long_too(config) else "tests marked long are left out; --long runs them as well"


def pytest_collection_modifyitems(config, items):
    left_out = [] if _long_too(config) else [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def _long_too(config):
    """Whether tests marked long run: asked for, or chosen by their mark."""
    return config.getoption("long") or config.getoption("campaign") or "long" in config.getoption("markexpr")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return how many processes ``-n auto`` means: a process is ready after seconds, so more than four do not pay."""
    return min(4, len(os.sched_getaffinity(0)))


def pytest_runtest_setup(item):
    missing = [name for mark in item.iter_markers("needs") for name in mark.args if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail") and "jax" not in str(report.longrepr).lower()
    if os.environ.get("REFATTN_REQUIRE_ALL") and skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped where every package is installed: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Started in the background, a test run ignores Ctrl-C, and so would every process it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
