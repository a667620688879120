"""Every figure in the paper, and the README's findings, are those of the shipped records."""

import json
import re
from pathlib import Path

import pytest

from refattn.experiments import tables
from refattn.experiments.results import read_all
from refattn.experiments.sparsek.passkey import successes
from refattn.experiments.sparsek.perplexity import gap_ratio
from refattn.experiments.sparsek.shipped import FOLDER

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs" / "paper"

FOUND = (
    "width 64 at n = {time_n:,}, a forward pass of conv attention with 16 terms takes {conv:.0f} ms",
    "one of SparseK attention {sparsek:.0f} ms, and exact attention in PyTorch {torch:.0f} ms",
    "logits deviate by {deviation:g}, {lost:,} of {domain_n:,} rows are lost; the worst row of the guarded path is at"
    " {guarded:.2g} of its tolerance",
    "Of {heads} heads of SmolLM2-135M, at n = 2,048 and with the best {k} starts there are, none has a relative error"
    " of the output below {small}, and the median is {median:.2f}",
    "at k = 0.75 n the perplexity is {least:.3g} to {most:.3g} times",
    "{short.value:.0%} at 2,048 tokens and {long.value:.0%} at 8,192 (256 pairs a query; 95 % intervals"
    " {short_low:.0f} to {short.high:.0%} and {long_low:.0f} to {long.high:.0%})",
    "scores learned on 8,192 tokens",
    "it finds {passkeys[0]} of {passkeys[1]} at 2,048 tokens, where exact attention finds {exact_passkeys[0]}",
)
"""What the paper says, with places for what the records say."""

NAMES = r"SmolLM2-135M|float32|width 64"
"""Where a digit is no result."""

README = (
    "leave {gap_2048_256:.0%} of the perplexity gap of a sliding window with sinks at 256 pairs per query, and"
    " {gap_2048_128:.0%} at 128",
    "they leave {long_2048_256:.0%} and {long_2048_128:.0%} at 2,048, and {long_8192_256:.0%} at 8,192",
)


@pytest.fixture(scope="module")
def records():
    return {name: found.rows() for name, found in read_all(ROOT / "docs" / "records", FOLDER).items()}


@pytest.fixture(scope="module")
def figures(records):
    """What the texts say, from the records, by name."""
    times = {row["method"]: 1e3 * row["seconds"] for row in records["time-against-n"]
             if row["n"] == 16384 and not row["training"]}  # fmt: skip
    domain = records["numerical-domain"]
    worst = max(domain, key=lambda row: row["rows_lost"] / row["n"])
    heads = [row for row in records["error-against-k"] if (row["n"], row["starts"], row["k"]) == (2048, "best", 256)]
    assert tables.below(heads) == 0
    texts = {row["text"]: row["perplexity"] for row in records["perplexity-against-k"] if row["starts"] == "exact"}
    quotients = [row["perplexity"] / texts[row["text"]] for row in records["perplexity-against-k"]
                 if row["share"] == 0.75]  # fmt: skip
    gaps = {(kind, n, budget): gap_ratio(records["sparsek-perplexity"], n=n, budget=budget, attention=kind)
            for kind in ("learned", "long") for n in (2048, 8192) for budget in (128, 256)}  # fmt: skip
    found = successes(records["sparsek-passkey"])
    short, long = gaps["long", 2048, 256], gaps["long", 8192, 256]
    return {
        "time_n": 16384, "conv": times["conv"], "sparsek": times["SparseK"], "torch": times["torch"],
        "deviation": worst["deviation"], "lost": worst["rows_lost"], "domain_n": worst["n"],
        "guarded": max(row["guarded_error"] / row["tolerance"] for row in domain),
        "heads": len(heads), "k": 256, "small": tables.SMALL, "median": tables.median(heads, "error"),
        "least": min(quotients), "most": max(quotients),
        "short": short, "long": long, "short_low": 100 * short.low, "long_low": 100 * long.low,
        "passkeys": found[2048, "long", 256], "exact_passkeys": found[2048, "exact", 2048],
        **{f"gap_{n}_{budget}": gaps["learned", n, budget].value for n, budget in ((2048, 256), (2048, 128))},
        **{f"long_{n}_{budget}": gaps["long", n, budget].value for n in (2048, 8192) for budget in (256, 128)},
    }  # fmt: skip


def flat(text):
    """Return a text in one line, with per cent as the texts write them."""
    return re.sub(r"(\d)%", r"\1 %", " ".join(text.split()))


@pytest.fixture(scope="module")
def paper():
    return (PAPER / "paper.md").read_text(encoding="utf-8")


def unknown_digits(body, sentences):
    """Return what has digits in a text when what the records say, names and references are taken out."""
    for sentence in sentences:
        body = body.replace(sentence, "")
    body = re.sub(rf"\[@\w+\]|!\[.*?\]\(.*?\)|{NAMES}", "", body)
    return re.findall(r"\S*\d\S*", body)


def test_the_paper_s_figures_are_the_records(paper, figures):
    body = flat(paper.split("---", 2)[2])
    sentences = [flat(sentence.format(**figures)) for sentence in FOUND]
    assert [sentence for sentence in sentences if sentence not in body] == []
    assert unknown_digits(body, sentences) == []


def test_a_figure_that_no_record_holds_is_noticed(paper, figures):
    body = flat(paper.split("---", 2)[2]) + " It is 7 times faster."
    assert unknown_digits(body, [flat(sentence.format(**figures)) for sentence in FOUND]) == ["7"]


def test_the_readme_s_findings_are_the_records(figures):
    text = flat((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [s for s in README if flat(s.format(**figures)) not in text] == []


def test_the_paper_s_references_are_in_the_bibliography_and_all_are_cited(paper):
    entries = re.findall(r"^@\w+\{(\w+),", (PAPER / "paper.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(re.findall(r"@(\w+)\]", paper))) == sorted(entries)


def test_the_paper_has_the_parts_that_a_journal_wants(paper):
    header, body = paper.split("---", 2)[1:]
    assert all(f"\n{key}:" in header for key in ("title", "tags", "authors", "affiliations", "date", "bibliography"))
    title = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))["title"]
    assert f"title: '{title}'" in header
    parts = re.findall(r"^# (.+)$", body, re.MULTILINE)
    assert {"Summary", "Statement of need", "State of the field", "References"} <= set(parts)
    assert 500 < len(body.split()) < 1750


def test_the_paper_s_date_is_the_records(paper, records):
    begun = read_all(ROOT / "docs" / "records")["time-against-n"].header["begun"]
    year, month, day = begun[:10].split("-")
    assert month == "11"
    assert f"date: {int(day)} November {year}\n" in paper
