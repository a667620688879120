"""What pytest loads in a trial: files are timed, the copy is tested, tests that quote the source are skipped."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

SECONDS: Counter[str] = Counter()


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
