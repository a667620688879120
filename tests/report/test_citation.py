"""The citation block says what CITATION.cff says."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

import refattn
from refattn.report import citation

CFF = Path(__file__).parents[2] / "CITATION.cff"


def test_the_fields_are_those_of_citation_cff():
    yaml = pytest.importorskip("ruamel.yaml", reason="comes with cffconvert")
    if not CFF.exists():
        pytest.skip("only in the sources")
    data = yaml.YAML(typ="safe").load(CFF.read_text(encoding="utf-8"))
    assert data["title"] == citation.TITLE
    assert data["license"] == citation.LICENSE
    assert [author["name"] for author in data["authors"]] == [citation.AUTHOR]
    assert data["version"] == refattn.__version__
    references = {
        reference["identifiers"][0]["value"].removeprefix("arXiv:"): {
            "title": reference["title"],
            "author": " and ".join(f"{a['family-names']}, {a['given-names']}" for a in reference["authors"]),
            "year": str(reference["year"]),
        }
        for reference in data["references"]
    }
    assert references == citation.PAPERS


def test_bibtex_has_balanced_braces_and_the_date_of_the_run():
    text = citation.bibtex(datetime(2031, 5, 6, tzinfo=UTC), {"commit": "a" * 40, "changed": False, "digest": "b" * 12})
    assert text.count("{") == text.count("}")
    assert re.findall(r"^@(\w+)\{([^,]+),$", text, re.M) == [
        ("software", "refattn"),
        ("article", "liang2024"),
        ("article", "lou2024"),
    ]
    assert "year    = {2031}" in text
    assert "report of 2031-05-06; sources bbbbbbbbbbbb, commit aaaaaaaaaaaa; " in text
