"""Verdicts follow from the numbers, and a row that was not run is never a pass."""

import json
import math
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from refattn.report import Claim, Measurement, ledger, run_claims, to_document
from refattn.report.ledger import NotRunError


def claim(measure, **options):
    return Claim("id", "ours", "a claim", "a check", measure, **options)


def only_row(measure, **options):
    return run_claims([claim(measure, **options)], quick=True).rows[0]


@pytest.mark.parametrize(
    ("measurement", "verdict"),
    [
        (Measurement("x", 1.0, at_most=1.0), "holds"),
        (Measurement("x", 1.1, at_most=1.0), "does not hold"),
        (Measurement("x", math.nan, at_most=1.0), "does not hold"),
        (Measurement("x", math.inf, at_most=1.0), "does not hold"),
        (Measurement("x", 2.0, at_least=1.0), "holds"),
        (Measurement("x", 0.5, at_least=1.0), "does not hold"),
        (Measurement("x", 0.5, at_most=1.0, condition="small", counterexample=3.0), "holds if"),
        (Measurement("x", 0.5, at_most=1.0, condition="small", counterexample=0.7), "holds"),
        (Measurement("x", 1.5, at_most=1.0, condition="small", counterexample=3.0), "does not hold"),
    ],
    ids=["equal", "above", "nan", "inf", "at-least", "below", "condition", "no-counterexample", "fails-anyway"],
)
def test_verdicts_follow_from_the_numbers(measurement, verdict):
    assert measurement.verdict == verdict
    assert only_row(lambda quick: measurement).verdict == verdict


def test_a_condition_without_a_counterexample_is_refused():
    with pytest.raises(ValueError, match="both or neither"):
        Measurement("x", 1.0, at_most=1.0, condition="small")
    with pytest.raises(ValueError, match="exactly one bound"):
        Measurement("x", 1.0)


def test_what_must_hold_and_does_not_fails_the_report_and_what_is_put_to_the_test_does_not():
    wrong = Measurement("x", 2.0, at_most=1.0)
    assert run_claims([claim(lambda quick: wrong)], quick=True).failed
    assert not run_claims([claim(lambda quick: wrong, must_hold=False)], quick=True).failed


def test_a_check_that_breaks_fails_the_report_and_the_others_still_run():
    def broken(quick):
        raise ZeroDivisionError("oops")

    fine = claim(lambda quick: Measurement("x", 0.0, at_most=1.0))
    report = run_claims([claim(broken, must_hold=False), fine], quick=True)
    assert [row.verdict for row in report.rows] == ["not run", "holds"]
    assert report.rows[0].reason == "the check broke: ZeroDivisionError: oops"
    assert [row.id for row in report.failed] == ["id"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"measure": None, "why_not": "not written"}, "not written"),
        ({"measure": lambda quick: 1 / 0, "needs": ("surely_no_module",)}, "needs surely_no_module"),
    ],
    ids=["no-check", "missing-package"],
)
def test_a_row_that_was_not_run_says_why_and_is_no_pass(options, reason):
    measure = options.pop("measure")
    report = run_claims([claim(measure, **options)], quick=True)
    assert report.rows[0].verdict == "not run"
    assert reason in report.rows[0].reason
    assert report.rows[0].measured is None
    assert report.counts()["holds"] == 0
    assert not report.failed


def test_a_check_can_decline():
    def declines(quick):
        raise NotRunError("only in full")

    row = only_row(declines)
    assert (row.verdict, row.reason, row.failed) == ("not run", "only in full", False)


def test_the_report_is_plain_json_even_where_numbers_are_not_finite():
    measurement = Measurement("x", math.inf, at_most=1.0, detail={"nan": math.nan, "fine": 1.5})
    plain = to_document(run_claims([claim(lambda quick: measurement)], quick=True))
    back = json.loads(json.dumps(plain, allow_nan=False))
    assert back["rows"][0]["measured"] == "inf"
    assert back["rows"][0]["detail"] == {"nan": "nan", "fine": 1.5}
    assert back["failed"] == ["id"]


def test_a_row_has_the_time_its_check_took_and_the_report_the_time_of_all(monkeypatch):
    clock, calendar = iter([10.0, 12.5]), iter([1000.0, 1004.0])
    monkeypatch.setattr(ledger.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        ledger, "datetime", SimpleNamespace(now=lambda zone: datetime.fromtimestamp(next(calendar), zone))
    )
    report = run_claims([claim(lambda quick: Measurement("x", 0.0, at_most=1.0))], quick=True)
    assert report.rows[0].seconds == 2.5
    assert report.begun == datetime.fromtimestamp(1000.0, UTC)
    assert report.seconds == 4.0
