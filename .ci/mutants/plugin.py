"""What pytest loads in a trial: files are timed, the copy is tested, tests that quote the source are skipped.

Where ``NUMBA_CACHE_DIR`` is set, compiled loops are kept for the next trial: no loop depends on another file but loops.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numba
import pytest

SECONDS: Counter[str] = Counter()


def keep_compiled(njit):
    """Return a decorator like Numba's which keeps what it compiles for the package, where that has a file."""

    def keeping(*functions, **options):
        if functions or options != {"nogil": True}:  # Numba's own
            return njit(*functions, **options)

        def decorate(function):
            try:
                return njit(cache=True, **options)(function)
            except RuntimeError:
                return njit(**options)(function)

        return decorate

    return keeping


if "NUMBA_CACHE_DIR" in os.environ:
    numba.njit = keep_compiled(numba.njit)


def pytest_sessionstart(session) -> None:
    """See to it that the copy is what the tests import."""
    found = Path(find_spec("refattn").origin)
    assert found.is_relative_to(session.config.rootpath), found


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """Skip a test that does not find the line it quotes, because the mutant changed it: that has caught nothing."""
    try:
        return (yield)
    except AssertionError as error:
        if re.match(r"no longer in |\d+ places in ", str(error)):
            pytest.skip("it quotes the source")
        raise


def pytest_runtest_logreport(report) -> None:
    """Add up the time of every file."""
    SECONDS[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the times."""
    terminalreporter.write_line(f"seconds: {json.dumps(SECONDS)}")
