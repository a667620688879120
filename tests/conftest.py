"""Skips are for machines that lack an optional package; where all are installed, a skip is a failure.

``@pytest.mark.needs("gguf", …)`` skips a test where one of the modules is missing.

JAX is not counted: it is one peer among several, and large.

What takes long is marked ``long``, and left out without ``--long``; what is marked ``campaign``, without ``--campaign``
(`lengths`). Where nothing is asked for, no path, no ``-k`` and no ``-m``, and with ``--sample``, a sample runs, for
which a newcomer waits: without what is marked ``slow``, and tests with many parameters on two sets of them, the first
and the last.

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

from lengths import sample


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run everything, what is marked long too")
    parser.addoption("--sample", action="store_true", help="a sample of the rest: the default without paths")
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
    if _long_too(config):
        return None
    return f"{'a sample of the tests' if _sampled(config) else 'what is not marked long'}; --long runs everything"


def pytest_collection_modifyitems(config, items):
    left_out = {"long": not _long_too(config), "campaign": not config.getoption("campaign")}
    kept = [item for item in items if not any(item.get_closest_marker(name) for name in left_out if left_out[name])]
    kept = list(sample(kept)) if _sampled(config) else kept
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[*{*items}.difference(kept)])
        items[:] = kept


def _sampled(config):
    """Whether nothing was asked for: then a newcomer waits."""
    asked = config.getoption("keyword") or config.getoption("markexpr") or _long_too(config)
    everywhere = not asked and config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return everywhere or config.getoption("sample")


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
