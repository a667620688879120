"""Every measured number on the page of whole models is that of the shipped records, which are complete."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from refattn.experiments.compared.whole_readings import overtakes, searched, timings, where
from refattn.experiments.conv.terms_against_n import exponent, fewest
from refattn.experiments.records import read_records

DOCS = Path(__file__).parents[2] / "docs"

TERMS = {
    "heads of the decoder, `q·k/√d`": ("decoder", "1/sqrt(d)"),
    "the same, `q·k/d`": ("decoder", "1/d"),
    "exactly k-conv, 16 segments": ("16 segments", "1/sqrt(d)"),
    "the same with noise": ("noisy segments", "1/sqrt(d)"),
    "a segment at every power of two": ("doubling segments", "1/sqrt(d)"),
    "a segment every 64 tokens": ("64 tokens each", "1/sqrt(d)"),
    "no structure": ("independent", "1/sqrt(d)"),
}
"""Lines of the first table."""

METHODS = ("conv, k = 16", "conv, k = n/2", "low rank", "SparseK")
LENGTHS = (512, 4096, 32_768)


def records_of(name):
    records = read_records(DOCS / "records" / f"{name}.jsonl")
    assert records.complete
    return records.rows()


@cache
def page():
    return " ".join((DOCS / "explanation" / "whole-models.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("label", TERMS)
@pytest.mark.parametrize("tolerance", [0.1, 0.5])
def test_the_terms_are_those_of_the_records(label, tolerance):
    found = fewest(records_of("terms-against-n"), tolerance)
    curves = [curve for key, curve in found.items() if key[:2] == TERMS[label]]
    medians = [f"{float(np.median([curve[n] for curve in curves])):,g}" for n in (128, 1024, 4096)]
    grows = exponent(curves)
    cells = [label, f"{tolerance:.0%}".replace("%", " %"), *medians]
    cells.append(f"{grows.value:.2f} ({grows.low:.2f} … {grows.high:.2f})")
    assert f"| {' | '.join(cells)} |" in page()


@pytest.mark.parametrize("tolerance", [0.1, 0.5])
def test_the_encoder_s_exponent_is_that_of_the_records(tolerance):
    found = fewest(records_of("terms-against-n"), tolerance)
    grows = exponent([curve for key, curve in found.items() if key[:2] == ("encoder", "1/sqrt(d)")])
    assert f"{grows.value:.2f} ({grows.low:.2f} … {grows.high:.2f}) for {tolerance * 100:.0f} %" in page()


@pytest.mark.parametrize("model", ["decoder", "encoder"])
def test_the_times_are_those_of_the_records(model):
    rows = records_of("whole-models")
    times, ahead = timings(rows), overtakes(rows)
    for name in METHODS if model == "decoder" else METHODS[:3]:
        cells = [times.get((model, n, name)) for n in LENGTHS]
        quotients = ["–" if one is None else f"{one.quotient:.2f}" for one in cells]
        error = times[model, 4096 if model == "decoder" else 512, name].error
        assert f"| {model} | {name} | {' | '.join(quotients)} | {where(ahead, model, name)} | {error:.2f} |" in page()


def test_the_sentences_are_those_of_the_records():
    rows = records_of("whole-models")
    times = timings(rows)
    exact = {n: times["decoder", n, "exact"] for n in LENGTHS}
    half, tenth = (searched(rows, tolerance)["decoder", 1024, "first"] for tolerance in (0.5, 0.1))
    wanted = [
        f"{exact[512].share:.0%} at n = 512, {exact[4096].share:.0%} at 4,096 and {exact[32_768].share:.0%} at 32,768",
        f"{exact[512].tokens:.0f} tokens a second at n = 512 and {exact[32_768].tokens:.0f} at 32,768",
        f"n = 1,024: {tenth.k} of its columns for 10 %",
        f"{tenth.quotient:.1f} times exact's",
        "none below n for 50 %" if half.k is None else f"{half.k} for 50 %",
        f"{exact[32_768].megabytes:,.0f} MB beyond the weights",
    ]
    told = page()
    assert [one.replace("%", " %") for one in wanted[:1] if one.replace("%", " %") not in told] == []
    assert [one for one in wanted[1:] if one not in told] == []
