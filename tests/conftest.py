"""Skips are for machines that lack an optional package; where all are installed, a skip is a failure.

``@pytest.mark.needs("gguf", …)`` skips a test where one of the modules is missing.

JAX is not counted: it is one peer among several, and large.

Compiled loops are kept for the run: in a folder that all its processes share, unless ``REFATTN_CACHE_DIR`` names one.

What several folders draw from (`decades`) can be imported.
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


def pytest_configure(config):
    """Keep the tests out of the user's cache; workers and whatever process a test starts inherit the variable."""
    if "REFATTN_CACHE_DIR" not in os.environ:
        os.environ["REFATTN_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="refattn-loops-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


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
