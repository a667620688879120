"""What counts as a change between two reports, and what is noise."""

import pytest

from refattn.report.compare import changes

ROW = {"id": "a.b", "verdict": "holds", "measured": 1.0, "at_most": 10.0, "at_least": None, "timed": False}


def report(*rows, quick=True):
    return {"quick": quick, "rows": [{**ROW, **row} for row in rows]}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({}, {}, False),
        ({}, {"measured": 1.09}, False),  # a hundredth of the bound
        ({}, {"measured": 1.2}, True),
        ({"measured": 100.0, "at_most": 1e9}, {"measured": 140.0, "at_most": 1e9}, False),
        ({"measured": 8.0}, {"measured": 8.3}, False),  # a twentieth of itself
        ({"at_most": None, "at_least": 0.5}, {"at_most": None, "at_least": 0.5, "measured": 0.8}, True),
        ({"timed": True}, {"timed": True, "measured": 1.4}, False),
        ({"timed": True}, {"timed": True, "measured": 1.6}, True),
        ({"timed": True}, {"timed": True, "measured": 0.0}, True),
        ({"measured": "inf"}, {"measured": "inf"}, False),
        ({"measured": "inf"}, {}, True),
        ({"measured": None, "verdict": "not run"}, {"measured": None, "verdict": "not run"}, False),
        ({"measured": None, "verdict": "not run"}, {}, True),
        ({}, {"verdict": "does not hold", "measured": 11.0}, True),
    ],
)
def test_a_number_changes_by_more_than_noise_only(before, after, changed):
    found = changes(report(before), report(after))
    assert bool(found) == changed
    assert all(change.id == "a.b" for change in found)


def test_rows_may_be_new_or_gone():
    found = changes(report({}, {"id": "a.c"}), report({"id": "a.d"}, {}))
    assert [(change.id, change.what) for change in found] == [("a.d", "new"), ("a.c", "gone")]


def test_a_quick_report_is_not_compared_with_a_full_one():
    with pytest.raises(ValueError, match="a quick report came, a full one was wanted"):
        changes(report({}), report({}, quick=False))
