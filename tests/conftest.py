"""Skips are for machines that lack an optional package; where all are installed, a skip is a failure.

JAX is not counted: it is one peer among several, and large.
"""

import os

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail") and "jax" not in str(report.longrepr).lower()
    if os.environ.get("REFATTN_REQUIRE_ALL") and skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped where every package is installed: {report.longrepr}"
    return report
