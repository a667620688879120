"""The report as JSON: its published layout, and what two runs have in common."""

import copy
import json

import pytest

from refattn.report import Claim, Measurement, comparable, run_claims, schema, to_document
from refattn.report.claims import ALL
from refattn.report.ledger import NotRunError

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="needs jsonschema-rs")


def declines(quick):
    raise NotRunError("only in full")


def breaks(quick):
    raise ZeroDivisionError("oops")


CASES = {
    "holds": lambda quick: Measurement("x", 1.0, at_most=1.0),
    "at-least": lambda quick: Measurement("x", 2.0, at_least=1.0, detail={"a": 1, "b": {"c": [1.0], "d": "text"}}),
    "holds-if": lambda quick: Measurement("x", 0.5, at_most=1.0, condition="small", counterexample=3.0),
    "no-counterexample": lambda quick: Measurement("x", 0.5, at_most=1.0, condition="small", counterexample=0.7),
    "infinite": lambda quick: Measurement("x", float("inf"), at_most=1.0, detail={"nan": float("nan")}),
    "declines": declines,
    "breaks": breaks,
}


@pytest.fixture
def document():
    claims = [Claim(f"case.{name}", "ours", "x ≤ 1.", "looking", measure) for name, measure in CASES.items()]
    claims += [Claim("case.unwritten", "arXiv 2405.05219, x", "x.", "looking", None, why_not="not written")]
    # as a reader gets it: through text, in which nothing but JSON's own words may stand
    return json.loads(json.dumps(to_document(run_claims(claims, quick=True)), allow_nan=False))


@pytest.fixture(scope="module")
def validator():
    jsonschema_rs.meta.validate(schema())
    return jsonschema_rs.Draft202012Validator(schema())


def test_every_kind_of_row_is_of_the_published_layout(document, validator):
    validator.validate(document)
    verdicts = {row["id"]: row["verdict"] for row in document["rows"]}
    assert set(verdicts.values()) == {"holds", "holds if", "does not hold", "not run"}


@pytest.mark.slow
def test_rows_of_the_ledger_are_of_the_published_layout(validator):
    chosen = [c for c in ALL if c.id.startswith(("dense.", "recover.", "model."))]
    validator.validate(json.loads(json.dumps(to_document(run_claims(chosen, quick=True)), allow_nan=False)))


def damaged(change):
    def apply(document):
        found = copy.deepcopy(document)
        change(found)
        return found

    return apply


def row_without_inputs(document):
    document["rows"][0]["inputs"] = ""


def verdict_of_another_language(document):
    document["rows"][0]["verdict"] = "passes"


def a_field_too_many(document):
    document["rows"][0]["note"] = "?"


def no_verdict(document):
    del document["rows"][0]["verdict"]


def not_run_but_measured(document):
    next(row for row in document["rows"] if row["id"] == "case.declines")["measured"] = 1.0


def two_bounds(document):
    document["rows"][0]["at_least"] = 0.0


def holds_if_nothing(document):
    next(row for row in document["rows"] if row["verdict"] == "holds if")["condition"] = ""


def uncovered_without_a_reason(document):
    next(item for item in document["coverage"] if not item["rows"])["remark"] = ""


def another_layout(document):
    document["schema"] = "refattn-report/3"


def local_time(document):
    document["run"]["begun"] = "2026-01-01 12:00"


@pytest.mark.parametrize(
    "damage",
    [
        row_without_inputs, verdict_of_another_language, a_field_too_many, no_verdict, not_run_but_measured, two_bounds,
        holds_if_nothing, uncovered_without_a_reason, another_layout, local_time,
    ],
)  # fmt: skip
def test_a_damaged_report_is_refused(document, validator, damage):
    damage(document)
    with pytest.raises(jsonschema_rs.ValidationError):
        validator.validate(document)


def test_comparable_takes_out_times_and_what_follows_from_them_and_nothing_else():
    def report(number):
        timed = Claim("a.time", "ours", "x.", "clock", lambda quick: Measurement("x", number, at_most=1.0), timed=True)
        steady = Claim("a.steady", "ours", "x.", "looking", lambda quick: Measurement("x", 0.5, at_most=1.0))
        return to_document(run_claims([timed, steady], quick=True))

    fast, slow = report(0.5), report(2.0)
    assert fast != slow
    assert slow["failed"] == ["a.time"]
    assert comparable(fast) == comparable(slow)
    assert comparable(fast)["counts"] == {"holds": 1, "holds if": 0, "does not hold": 0, "not run": 0}
    changed = copy.deepcopy(fast)
    changed["rows"][1]["measured"] += 1e-16
    assert comparable(changed) != comparable(fast)
    assert comparable(fast)["environment"] == fast["environment"]
