"""How long tests go on: a sample for two minutes; with ``--long`` all of them; with ``--campaign`` for hours.

A test marked ``slow`` takes most of a second or more, and is not in the sample (`conftest`). A test marked ``long``
runs with ``--long`` only; one marked ``campaign``, which repeats at length what others find, with ``--campaign`` only.
A test of many drawn cases takes them from `cases`: the first few always, the others marked ``long``, and in a campaign
many more that nobody has drawn before.
"""

import os

import pytest

CAMPAIGN = os.environ.get("REFATTN_CAMPAIGN") == "1"
"""Whether the numbers are those whose results stand in docs/explanation/robustness.md; `conftest` sets the variable."""


def long(*values):
    """Return values of a parameter that are left out without ``--long``."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


def campaign(*values):
    """Return values of a parameter that are left out without ``--campaign``."""
    return [pytest.param(value, marks=pytest.mark.campaign) for value in values]


def cases(few, all_of_them, campaign=None):
    """Return the mark that gives a test ranges of case numbers as `cases`: the first few; and the others, if long."""
    end = campaign if CAMPAIGN and campaign else all_of_them
    others = pytest.param(range(few, end), id=f"{few} to {end - 1}", marks=pytest.mark.long)
    return pytest.mark.parametrize("cases", [pytest.param(range(few), id=f"0 to {few - 1}"), others])


def sample(items):
    """Yield the first and the last of what is the same test with other parameters, unless it is slow."""
    tests = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for found in tests.values():
        yield from (found[place] for place in sorted({0, len(found) - 1}))
