"""The folder of a reproducibility report: filled from a report, compiles, and says what is left to a person."""

import json

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'report'")

from refattn.report.figures import figures
from refattn.report.pictures import pdf
from refattn.report.stored import read
from refattn.report.study import study

CHALLENGE = [
    "Scope of reproducibility", "Methodology", "Results", "What was easy", "What was difficult",
    "Communication with original authors",
]  # fmt: skip
"""Headings of the ML Reproducibility Challenge's summary."""


@pytest.mark.slow
def test_it_compiles_with_its_bibliography(written, compiled):
    log = compiled(study(written), "pdflatex report", "bibtex report", "pdflatex report", "pdflatex report")
    assert "undefined" not in log


def test_it_has_the_challenges_headings_and_leaves_the_authors_to_a_person(written):
    text = study(written)["report.tex"]
    for heading in CHALLENGE:
        assert rf"\subsection*{{{heading}}}" in text
    for heading in CHALLENGE[-3:]:
        after = text.split(rf"\subsection*{{{heading}}}")[1]
        assert after.strip().startswith(r"\todo{")


def test_every_row_stands_in_it_with_its_verdict(written):
    text = study(written)["report.tex"].replace(r"\allowbreak{}", "")
    for row in written["rows"]:
        failed = ": FAILED" if row["failed"] else ""
        assert rf"\claim{{\texttt{{{row['id']}}}}}{{{row['verdict']}{failed}}}" in text


def test_it_holds_the_report_that_it_is_made_of(written):
    files = study(written)
    assert read(files["report.json"]) == written
    assert json.loads(files["report.json"]) == written
    assert written["citation"]["bibtex"] in files["references.bib"]


def test_a_report_of_our_own_claims_alone_is_one_too(written, compiled):
    ours = [row for row in written["rows"] if row["paper"] == "ours"]
    compiled(study({**written, "rows": ours}), "pdflatex report", "bibtex report", "pdflatex report")


def test_a_figure_is_the_same_file_whenever_it_is_drawn_and_its_numbers_are_beside_it(written):
    (figure,) = figures(written["rows"])
    files = study(written)
    assert files["figures/product-time.pdf"] == pdf(figure)
    assert files["figures/product-time.pdf"].startswith(b"%PDF")
    assert files["figures/product-time.csv"] == "n,by FFT\n4096.0,0.004096\n16384.0,0.016384\n"
