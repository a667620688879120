"""The ledger as Markdown and as LaTeX: a table of the rows, whatever they say, with what its numbers come from."""

import re

import pytest

from refattn.report.selection import Choice
from refattn.report.tables import latex, markdown

markdown_it = pytest.importorskip("markdown_it", reason="comes with rich, of the extra 'report'")


def cells(text):
    """Return the tables of a Markdown text as a reader of it sees them: rows of cells, each its text alone."""
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tables, seen = [], []
    for token in parser.parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and token.level > 2:
            seen += [child.type for child in token.children]
            tables[-1][-1].append("".join(child.content for child in token.children))
    return tables, set(seen)


def test_markdown_is_one_table_of_the_rows_and_one_of_where_they_come_from(written):
    (ledger, origin), kinds = cells(markdown(written))
    assert [len(row) for row in ledger] == [6] * (1 + len(written["rows"]))
    assert [row[0] for row in ledger[1:]] == [row["id"] for row in written["rows"]]
    assert [len(row) for row in origin] == [2] * len(origin)
    assert kinds == {"text", "code_inline", "strong_open", "strong_close"}


def test_what_a_claim_says_is_what_a_reader_of_the_table_sees(written):
    (ledger, _), _ = cells(markdown(written))
    for row, (_, claim, source, *_, verdict) in zip(written["rows"], ledger[1:], strict=True):
        assert claim.startswith(row["claim"])
        assert row["condition"] in claim
        assert row["reason"] in claim
        assert source.startswith(row["source"])
        assert verdict == row["verdict"] + (" FAILED" if row["failed"] else "")
        assert ("put to the test" in source, "a time" in source) == (not row["must_hold"], row["timed"])


@pytest.mark.parametrize("render", [markdown, latex])
def test_both_say_counts_failures_and_origin(written, render):
    text = re.sub(r"\\allowbreak\{\}|\\texttt|[`{}\\*]", "", render(written))
    assert "6 claims: 2 hold, 1 hold under a stated condition, 2 do not hold, 1 were not run." in text
    assert "1 failed, what must hold does not or its check broke: sparsek.failed." in text
    machine = written["environment"]["machine"]
    for fact in (f"refattn {written['version']}", machine["cpu"].replace("_", ""), "quick: smaller sizes"):
        assert fact in text.replace("_", "")


@pytest.mark.parametrize("render", [markdown, latex])
def test_both_say_commit_digest_command_and_machine_and_what_is_from_records(written, render):
    document = {**written, "rows": [dict(row) for row in written["rows"]]}
    document["run"] = {**written["run"], "command": "refattn report --quick --json 'a b.json'"}
    sources = {"commit": "0123456789abcdef", "changed": True, "digest": "fedcba987654"}
    document["environment"] = {**written["environment"], "sources": sources, "threads": 7}
    document["environment"]["machine"] = {**written["environment"]["machine"], "cpu": "Some CPU", "memory_gib": 23.4}
    document["rows"][0]["recorded"] = {"experiment": "x", "begun": "2031-02-03T04:05:06", "version": "0.0.9"}
    text = render(document).replace(r"\allowbreak{}", "").replace(r"\textquotesingle{}", "'")
    assert "commit 0123456789abcdef with changes, digest fedcba987654" in text
    assert "refattn report --quick --json 'a b.json'" in text
    assert "Some CPU, " in text
    assert "23.4 GiB" in text
    assert text.count("recorded 2031-02-03, refattn 0.0.9") == 1


@pytest.mark.parametrize("render", [markdown, latex])
def test_a_choice_of_rows_is_named_and_hides_no_failure(written, render):
    text = render(written, Choice(verdicts=("holds",), papers=("ours",)))
    assert "Shown are 1 of the 6: paper ours; verdict holds." in text
    assert "sparsek" in text
    assert "6 claims" in text
    assert "conv" not in text
    assert "Shown are" not in render(written)


def test_latex_compiles_by_itself_and_in_a_paper(written, compiled):
    table = latex(written)
    head = r"\documentclass{article}\usepackage{array,booktabs,longtable}\begin{document}"
    paper = head + r"\input{t}\ref{tab:claims}\end{document}"
    log = compiled({"t.tex": table, "p.tex": paper}, "pdflatex t", "pdflatex t", "pdflatex p", "pdflatex p")
    assert table.isascii()
    assert "undefined" not in log


def test_latex_of_the_whole_ledger_compiles_and_no_line_is_too_long(compiled):
    from dataclasses import replace

    from refattn.report import Measurement, run_claims, to_document
    from refattn.report.claims import ALL

    def measure(quick):
        return Measurement("x", 1.234e-12, at_most=1.001e-10, condition="ε ≤ δ/(5T)", counterexample=1e300)

    claims = [replace(claim, measure=measure, needs=()) for claim in ALL]
    table = latex(to_document(run_claims(claims, quick=True)))
    log = compiled({"t.tex": table}, "pdflatex t", "pdflatex t")
    assert "Overfull" not in log
    assert "U+" not in table
    assert table.count(r"\addlinespace[2pt]") == len(ALL)
