"""SparseK inside a language model: items, their sums, the text that is held out, and the page that prints them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refattn.experiments.records import read_records
from refattn.experiments.sparsek import passkey, perplexity
from refattn.experiments.sparsek.perplexity import gap_ratio, perplexities
from refattn.experiments.sparsek.shipped import FOLDER, passkey_table, perplexity_table, shipped_rows
from refattn.laboratory.scorers.texts import (
    HELD_OUT,
    JOINED,
    Window,
    fitting_texts,
    fitting_windows,
    held_out_windows,
    joined_windows,
    tokens_of,
    window_tokens,
)

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "sparsek-learned.md"
EXPERIMENTS = [perplexity.EXPERIMENT, passkey.EXPERIMENT]
needs_texts = pytest.mark.needs(*perplexity.EXPERIMENT.needs)


def _rows(losses, blocks=40):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.5, blocks)
    return [
        {"n": 2048, "text": "a", "start": 0, "attention": name, "budget": budget, "block": b, "tokens": 256 - (b == 3),
         "loss": loss + noise[b]}
        for (name, budget), loss in losses.items()
        for b in range(blocks)
    ]  # fmt: skip


LOSSES = {("exact", 2048): 3.0, ("window-sinks", 128): 3.2, ("learned", 128): 3.08}


def test_perplexity_is_that_of_all_tokens_and_lies_in_its_interval():
    rows = _rows(LOSSES)
    exact = perplexities(rows)[0]
    weight, loss = (np.array([row[name] for row in rows[:40]]) for name in ("tokens", "loss"))
    np.testing.assert_allclose(exact.value, np.exp(np.average(loss, weights=weight)), rtol=1e-12)
    assert exact.low < exact.value < exact.high
    assert exact.tokens == 40 * 256 - 1


def test_the_gap_ratio_compares_the_same_blocks():
    ratio = gap_ratio(_rows(LOSSES), n=2048, budget=128)
    np.testing.assert_allclose(ratio.value, np.expm1(0.08) / np.expm1(0.2), rtol=1e-9)
    np.testing.assert_allclose([ratio.low, ratio.high], ratio.value, rtol=1e-9)  # the noise is common to all three
    with pytest.raises(ValueError, match="same blocks"):
        gap_ratio(_rows(LOSSES)[:-1], n=2048, budget=128)
    with pytest.raises(ValueError, match="same blocks"):
        gap_ratio(_rows(LOSSES), n=4096, budget=128)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_items_are_distinct_and_every_length_has_the_exact_model(experiment):
    items = experiment.items(experiment.sizes)
    assert len({str(item) for item in items}) == len(items)
    assert {item["n"] for item in items if item["attention"] == "exact"} == set(experiment.sizes)


def test_text_that_is_not_held_out_is_refused():
    item = {"n": 2048, "text": "love", "start": 0, "attention": "exact", "budget": 2048}
    with pytest.raises(ValueError, match="held out"):
        perplexity.run(item)


@needs_texts
@pytest.mark.long
def test_fitting_and_held_out_text_are_disjoint():
    fitting, held_out = fitting_windows(), held_out_windows()
    assert len(fitting) == 20
    assert not {window.text for window in fitting} & set(HELD_OUT)
    assert {window.text for window in held_out} == set(HELD_OUT)
    assert not set(fitting_texts()) & set(HELD_OUT)
    joined = joined_windows()
    assert len(joined) == 13
    assert len(tokens_of(JOINED)) == sum(len(tokens_of(text)) for text in fitting_texts())
    np.testing.assert_array_equal(window_tokens(joined[0])[:1749], tokens_of(fitting_texts()[0]))
    for n, windows in perplexity.WINDOWS.items():
        assert n * len(windows) >= (16384 if n == 2048 else n)
        assert all(text in HELD_OUT for text, _ in windows)
        assert all(len(window_tokens(Window(text, start, n))) == n for text, start in windows)


@needs_texts
def test_two_windows_of_a_text_do_not_overlap():
    for n, windows in perplexity.WINDOWS.items():
        for text, start in windows:
            assert not any(other == text and 0 < abs(begin - start) < n for other, begin in windows)


@needs_texts
@pytest.mark.parametrize("depth", passkey.DEPTHS)
def test_the_passkey_stands_where_it_should_and_outside_the_window(depth):
    n = 2048
    tokens, key = passkey.prompt_and_key(n, depth, seed=3)
    assert len(tokens) == n
    assert len(key) == passkey.DIGITS
    np.testing.assert_array_equal(tokens[-len(key) :], key)
    found = [at for at in range(n - len(key)) if (tokens[at : at + len(key)] == key).all()]
    assert len(found) == 2
    assert abs(found[0] - depth * n) < 60
    assert n - found[-1] > 256 + 60


@needs_texts
def test_an_item_is_computed_from_the_item_alone(monkeypatch):
    class Toy:
        def losses(self, tokens, attend, observe):
            assert attend is None
            return np.arange(len(tokens) - 1.0)

    monkeypatch.setattr(perplexity, "model", lambda: Toy())
    item = {"n": 2048, "text": "useful", "start": 0, "attention": "exact", "budget": 2048}
    records = perplexity.run(item)
    assert [record["tokens"] for record in records] == [256] * 7 + [255]
    assert records[0] == {"block": 0, "tokens": 256, "loss": 127.5, "scorer": None}
    assert records == perplexity.run(item)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_the_shipped_records_are_those_of_the_experiment_and_small(experiment):
    path = FOLDER / f"{experiment.name}.jsonl"
    records = read_records(path)
    assert records.complete
    assert records.header["experiment"] == experiment.name
    assert [result.item for result in records.results] == experiment.items(records.header["sizes"])
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize(
    ("name", "table"), [("sparsek-perplexity", perplexity_table), ("sparsek-passkey", passkey_table)]
)
def test_the_page_prints_the_records(name, table):
    assert table(shipped_rows(name)) in PAGE.read_text(encoding="utf-8")
