"""JUnit XML of a report: the elements that build servers know, counts that agree, text that XML can hold."""

from xml.etree import ElementTree as Tree

import pytest

import refattn
from refattn.testing import ConformanceReport, as_junit, check_attention

# Of junit-10.xsd: children, attributes that are there, attributes that may be.
TOTALS = {"time", "tests", "failures", "errors", "disabled"}
RULES = {
    "testsuites": ({"testsuite"}, set(), {"name", *TOTALS}),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err"},
        {"name", "tests"},
        {*TOTALS, "skipped", "timestamp", "hostname", "id", "package"},
    ),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name"},
        {"classname", "time", "assertions", "status", "group", "file", "line"},
    ),
    "failure": (set(), set(), {"type", "message"}),
    "skipped": (set(), set(), {"type", "message"}),
    "system-out": (set(), set(), set()),
}


def against_the_schema(element):
    """Yield what an element, and those in it, have or lack against the rules."""
    children, needed, allowed = RULES[element.tag]
    yield from (f"{element.tag} in it: {one.tag}" for one in element if one.tag not in children)
    yield from (f"{element.tag} lacks {name}" for name in needed - set(element.attrib))
    yield from (f"{element.tag} has {name}" for name in set(element.attrib) - needed - allowed)
    for name in {*TOTALS, "skipped"} & set(element.attrib):
        assert float(element.attrib[name]) >= 0
    for one in element:
        yield from against_the_schema(one)


def attention(q, k, v, *, causal, scale):
    if q.shape[-1] != v.shape[-1]:
        raise RuntimeError("d_v \x00\x1b[31m ≠ d")
    return refattn.dense_attention(q, k, v, mask="causal" if causal and q.shape[-2] != 65 else "full", scale=scale)


def backward(dout, *inputs, **options):
    raise RuntimeError("no <backward> & none planned")


@pytest.fixture(scope="module")
def report():
    return check_attention(attention, "dense", backward=backward, profile="quick", only=["ordinary", "mask: random"])


def test_a_report_is_the_xml_that_build_servers_read(report):
    root = Tree.fromstring(as_junit(report))
    assert list(against_the_schema(root)) == []
    assert root.tag == "testsuites"


def test_the_counts_are_those_of_the_cases(report):
    (suite,) = Tree.fromstring(as_junit(report))
    counts = report.counts()
    assert counts["fail"]
    assert counts["refused"]
    assert counts["not run"]
    assert int(suite.get("tests")) == len(suite) == len(report.cases)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == counts["fail"]
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped")) == counts["refused"] + counts["not run"]
    names = [case.get("name") for case in suite]
    assert len(set(names)) == len(names)


def test_a_failure_says_the_row_and_the_cause(report):
    (failure,) = Tree.fromstring(as_junit(report)).iter("failure")
    assert failure.get("message").startswith("causal, n = 65 (seed 0): out row (0, ")
    assert "cause: future leak" in failure.text


def test_what_was_raised_is_said_in_characters_that_xml_has(report):
    root = Tree.fromstring(as_junit(report))
    assert "refused: raised RuntimeError: d_v \ufffd\ufffd[31m ≠ d" in {x.get("message") for x in root.iter("skipped")}
    (said,) = {x.text for x in root.iter("system-out")}
    assert said == "gradients refused: raised RuntimeError: no <backward> & none planned"


def test_nothing_judged_is_a_failure():
    empty = ConformanceReport("dense", "mine", "float32", "float32", 4.0, False, cases=())
    (suite,) = Tree.fromstring(as_junit(empty))
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert list(against_the_schema(suite)) == []
