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
LENGTHS = (512, 2048, 4096, 32_768)


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
        error = times[model, 2048 if model == "decoder" else 512, name].error
        assert f"| {model} | {name} | {' | '.join(quotients)} | {where(ahead, model, name)} | {error:.2f} |" in page()


def test_what_is_said_of_noise_and_of_the_running_mean_is_in_the_records():
    rows = records_of("terms-against-n")
    noisy = [
        row["error"]
        for row in rows
        if (row["inputs"], row["scale"], row["method"], row["tolerance"])
        == ("noisy segments", "1/sqrt(d)", "known", 0.5)
    ]
    assert f"an error of {min(noisy):.2f} to {max(noisy):.2f}" in page()
    means = {}
    for row in rows:
        if (row["inputs"], row["scale"]) == ("decoder", "1/d"):
            means.setdefault(row["n"], []).append(row["mean"])
    medians = [float(np.median(some)) for some in means.values()]
    assert f"{min(medians):.2f} to {max(medians):.2f} there" in page()


def test_the_sentences_are_those_of_the_records():
    rows = records_of("whole-models")
    exact = {n: timings(rows)["decoder", n, "exact"] for n in LENGTHS}
    half, tenth = (searched(rows, tolerance)["decoder", 1024, "first"] for tolerance in (0.5, 0.1))
    shares = [f"{100 * exact[n].share:.0f} %" for n in (512, 4096, 32_768)]
    wanted = [
        "{} of the decoder's time at n = 512, {} at 4,096 and {} at 32,768".format(*shares),
        f"{half.k} of 1,024 columns for 50 % and {tenth.k} for 10 %, at {half.quotient:.1f} and {tenth.quotient:.1f}"
        " times",
    ]
    assert [one for one in wanted if one not in page()] == []


def test_what_is_said_of_memory_is_in_the_records():
    held = {}
    for (model, n, _), one in timings(records_of("whole-models")).items():
        held.setdefault((model, n), []).append(one.megabytes)
    assert all(max(some) < 4 / 3 * min(some) for some in held.values())
    assert max(held["decoder", 32_768]) < 1.1 * min(held["decoder", 32_768])
