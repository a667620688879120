"""The coverage table: every id exists, every row that cites a paper is in it, every item has rows or a reason."""

import re

import pytest

from refattn.report.claims import ALL
from refattn.report.coverage import PAPERS, coverage, paper_of

COVERAGE = coverage()


@pytest.mark.parametrize("item", COVERAGE, ids=lambda item: f"{item.kind} {item.name}")
def test_every_item_has_rows_of_the_ledger_or_says_why_none(item):
    assert item.rows or item.remark
    assert item.paper in PAPERS


def test_every_item_that_a_claim_covers_is_in_the_table():
    assert {label for claim in ALL for label in claim.covers} <= {item.label for item in COVERAGE}


@pytest.mark.parametrize("claim", [c for c in ALL if paper_of(c.source) in PAPERS], ids=lambda claim: claim.id)
def test_every_row_that_cites_a_paper_is_in_the_table(claim):
    assert any(claim.id in item.rows and item.paper == paper_of(claim.source) for item in COVERAGE)


def test_what_is_uncovered_is_what_the_documentation_says():
    uncovered = {(item.paper, item.kind) for item in COVERAGE if not item.covered}
    assert {kind for _, kind in uncovered} == {"figure", "table"}, (
        "a definition, lemma, theorem or algorithm has no row"
    )


def test_no_item_is_named_twice():
    assert len({item.label for item in COVERAGE}) == len(COVERAGE)
    assert len({(item.paper, item.kind, item.name) for item in COVERAGE}) == len(COVERAGE)


HEADING = re.compile(r"(definition|algorithm|theorem)s? (?:on \w+ )?\(?(\d+(?:\.\d+)?)(?: and (\d+))?", re.IGNORECASE)


def test_every_heading_that_a_row_cites_by_number_is_in_the_table():
    known = {(item.kind, item.number) for item in COVERAGE}
    cited = {(match[1].lower(), number) for claim in ALL for match in HEADING.finditer(claim.source)
             for number in match.groups()[1:] if number}  # fmt: skip
    assert cited <= known
    assert len(cited) >= 12
