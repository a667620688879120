"""A conformance report as JUnit XML, which build servers read (ours).

The elements and attributes are those of Jenkins' schema (junit-10.xsd of its xUnit plugin), which other servers read as
well: a test suite with its counts, a test case for every case, a failure or a reason for skipping in it.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Tree

from refattn.testing.conformance.report import (
    FAIL,
    NOT_RUN,
    PASS,
    REFUSED,
    CaseResult,
    ConformanceReport,
    describe,
    guess,
    in_a_line,
)

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: ConformanceReport) -> str:
    """Return a report as JUnit XML.

    A refused case and one that was not run are skipped, with the reason. A report in which nothing could be judged has
    a test case of its own that fails, for no suite may take it for a pass.

    Parameters
    ----------
    report : ConformanceReport
        What `check_attention` found.

    Returns
    -------
    str
        The text of a file, in UTF-8.

    Raises
    ------
    AttributeError
        What came is no report.

    Notes
    -----
    O(cases). Source: ours.

    Examples
    --------
    >>> from refattn.testing import ConformanceReport, as_junit
    >>> report = ConformanceReport("dense", "mine", "float32", "float32", 4.0, False, cases=())
    >>> print(as_junit(report).splitlines()[3].strip())
    <testcase classname="refattn.dense" name="anything judged" time="0.000">
    """
    counts = report.counts()
    nothing = not report.passed and not report.failures
    seconds = f"{sum(case.seconds for case in report.cases):.3f}"
    totals = {
        "tests": str(len(report.cases) + nothing),
        "failures": str(counts[FAIL] + nothing),
        "errors": "0",
        "time": seconds,
    }
    skipped = str(counts[REFUSED] + counts[NOT_RUN])
    name = f"{_legal(report.function)} as {report.operation}, {report.dtype}"
    suites = Tree.Element("testsuites", {"name": "refattn conform", **totals})
    suite = Tree.SubElement(suites, "testsuite", {"name": name, **totals, "skipped": skipped})
    for case in report.cases:
        _add(suite, report, case)
    if nothing:
        said = {"classname": f"refattn.{report.operation}", "name": "anything judged", "time": "0.000"}
        message = "no case passed, or no gradient could be judged: nothing is known of the function"
        Tree.SubElement(Tree.SubElement(suite, "testcase", said), "failure", {"message": message, "type": "nothing"})
    Tree.indent(suites)
    return Tree.tostring(suites, encoding="unicode", xml_declaration=True).replace("us-ascii", "UTF-8") + "\n"


def _add(suite: Tree.Element, report: ConformanceReport, case: CaseResult) -> None:
    """Add a case, and what is to be said of it."""
    seed = f" (seed {case.seed})" if case.seed else ""
    said = {"classname": f"refattn.{report.operation}.{case.kind}", "name": _legal(case.case) + seed}
    element = Tree.SubElement(suite, "testcase", {**said, "time": f"{case.seconds:.3f}"})
    if case.verdict == FAIL:
        failure = Tree.SubElement(element, "failure", {"message": _legal(in_a_line(case)), "type": FAIL})
        failure.text = _legal("\n".join([*describe(case), *map(guess, report.causes)]))
    elif case.verdict != PASS:
        Tree.SubElement(element, "skipped", {"message": _legal(f"{case.verdict}: {case.reason}")})
    elif case.gradients_refused:
        Tree.SubElement(element, "system-out").text = _legal(f"gradients refused: {case.gradients_refused}")


def _legal(text: str) -> str:
    """Text without the characters that XML has no way to say."""
    return _NOT_XML.sub("\ufffd", text)
