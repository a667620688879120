"""A report that is read back is one of its layout, or what is wrong with it is named."""

import json

import pytest

from refattn.report.stored import read


def test_a_report_comes_back_as_it_was_written(written):
    assert read(json.dumps(written)) == written


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.pop("rows"), "report.rows: nothing came"),
        (lambda d: d.update(rows={}), "report.rows: dict came, array was wanted"),
        (lambda d: d["rows"][2].pop("claim"), r"report.rows\[2\].claim: nothing came"),
        (lambda d: d["rows"][2].update(verdict="maybe"), r"report.rows\[2\].verdict: 'maybe' came"),
        (lambda d: d["rows"][2].update(measured="much"), r"report.rows\[2\].measured: str came"),
        (lambda d: d["rows"][2].update(failed=1), r"report.rows\[2\].failed: int came, boolean"),
        (lambda d: d["environment"].pop("machine"), "report.environment.machine: nothing came"),
        (lambda d: d.update(schema="refattn-report/0"), "the layout 'refattn-report/0' came"),
        (lambda d: d.pop("schema"), "something else came"),
    ],
)
def test_what_is_missing_or_another_thing_is_named(written, change, told):
    changed = json.loads(json.dumps(written))
    change(changed)
    with pytest.raises(ValueError, match=told):
        read(json.dumps(changed))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", b"\xff\xfe", "[" * 100_000])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ValueError, match="came"):
        read(text)
