"""Opponents of SparseK: the same windows and pairs, prompts that hide what is asked for, and what is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refattn.experiments.compared.classification import wilson
from refattn.experiments.sparsek import hidden, opponents, passkey, perplexity, retrieval
from refattn.experiments.sparsek.hidden import hidden_in, judged
from refattn.experiments.sparsek.retrieval import KINDS, TRIALS, prompt_of, shares
from refattn.experiments.sparsek.shipped import opponents_table, retrieval_table, shipped_rows
from refattn.models import HeavyHitterAttention, Llama, LlamaConfig, TopKAttention
from refattn.models.scorer import BUDGETS

needs_texts = pytest.mark.needs(*retrieval.EXPERIMENT.needs)


def test_opponents_read_the_windows_that_perplexity_has():
    windows = {(n, text, start) for n, found in perplexity.WINDOWS.items() for text, start in found}
    items = opponents.items(opponents.EXPERIMENT.sizes)
    assert {(item["n"], item["text"], item["start"]) for item in items} == windows
    assert len(items) == len(windows) * 2 * len(BUDGETS)
    assert len(opponents.items(opponents.EXPERIMENT.quick_sizes)) == 2 * len(BUDGETS)


@pytest.mark.parametrize("budget", [*BUDGETS, 7])
def test_opponents_have_as_many_pairs_as_they_say(budget):
    heavy, _ = perplexity._attention("heavy-hitters", budget)
    largest, _ = perplexity._attention("largest-logits", budget)
    assert isinstance(heavy, HeavyHitterAttention)
    assert isinstance(largest, TopKAttention)
    assert heavy.pairs_per_query(9999) == largest.pairs_per_query(9999) == budget
    assert 0 <= heavy.heavy - heavy.recent <= 1


@pytest.mark.parametrize("n", [2048, 4096, 8192])
def test_every_attention_is_asked_every_trial_once(n):
    asked = {}
    for item in retrieval.items([n]):
        trials = asked.setdefault((item["kind"], item["attention"], item["budget"]), [])
        trials += range(item["first"], item["last"] + 1)
    assert all(trials == list(range(TRIALS)) for trials in asked.values())
    names = {"window-sinks", "heavy-hitters", "snapkv", "largest-logits", "long", *(["learned"] if n == 2048 else [])}
    wanted = {(kind, name, budget) for kind in KINDS for name in names for budget in BUDGETS}
    assert asked.keys() == wanted | {(kind, "exact", n) for kind in KINDS}


def words(monkeypatch):
    """A tokenizer of words, the same number for the same word."""
    numbers = {}
    encode = lambda text: np.array([numbers.setdefault(word, 100 + len(numbers)) for word in text.split()])  # noqa: E731
    monkeypatch.setattr(hidden, "encoded", encode)
    return encode


def test_sentences_stand_at_their_depths_and_the_answer_at_the_end(monkeypatch):
    encode = words(monkeypatch)
    prompt = hidden_in(np.arange(50), 30, [(0.5, "b c"), (0.0, "a"), (0.5, "d"), (1.0, "e")], "what is it", "b c")
    filler = np.arange(20)  # 30, less 5 of sentences, 3 of the question, 2 of the answer
    right = [encode("a"), filler[:10], encode("b c d"), filler[10:], encode("e what is it b c")]
    np.testing.assert_array_equal(prompt.tokens, np.concatenate(right))
    np.testing.assert_array_equal(prompt.answer, encode("b c"))
    with pytest.raises(ValueError, match="n: 30 came, room for the sentences and at most 19 tokens"):
        hidden_in(np.arange(19), 30, [(0.5, "b c"), (0.0, "a"), (0.5, "d"), (1.0, "e")], "what is it", "b c")
    with pytest.raises(ValueError, match="n: 3 came"):
        hidden_in(np.arange(50), 3, [(0.5, "b")], "what", "b")


def test_an_answer_is_found_if_every_token_of_it_is_the_most_probable(monkeypatch):
    class Toy:
        logits = staticmethod(lambda rows: rows)

    monkeypatch.setattr(hidden, "model", Toy)
    logits, answer = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])), np.array([0, 2])
    found = judged(logits + np.array([[7.0], [-3.0]]), answer)
    assert (found["success"], found["right"]) == (True, 2)
    assert found["loss"] == pytest.approx(-math.log(0.5 * 0.6), rel=1e-12)
    found = judged(logits, np.array([0, 1]))
    assert (found["success"], found["right"]) == (False, 1)
    assert found["loss"] == pytest.approx(-math.log(0.5 * 0.3), rel=1e-12)


@needs_texts
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_stands_outside_every_window_at_even_depths(kind):
    n, places, seen = 2048, [], set()
    for trial in range(0, TRIALS, 7):
        prompt = prompt_of(kind, n, trial)
        m = len(prompt.answer)
        assert len(prompt.tokens) == n
        np.testing.assert_array_equal(prompt.tokens[-m:], prompt.answer)
        np.testing.assert_array_equal(prompt.tokens, prompt_of(kind, n, trial).tokens)
        found = [at for at in range(n - m) if (prompt.tokens[at : at + m] == prompt.answer).all()]
        assert found
        assert n - m - found[-1] > max(BUDGETS) + 30
        places.append(found[0] / n)
        seen.add(prompt.tokens.tobytes())
    assert len(seen) == len(places)
    np.testing.assert_allclose(np.diff(places), 7 / TRIALS * (1 - retrieval.OUTSIDE / n), atol=0.03)
    assert places[0] < 0.05


def test_keys_are_no_words_and_all_are_different():
    assert len({*retrieval.KEYS, *retrieval.WORDS}) == len(retrieval.KEYS) + len(retrieval.WORDS)


CONFIG = LlamaConfig(
    n_layers=2, width=8, ffn_width=12, vocab_size=49152, n_heads=4, n_kv_heads=2, head_width=4, context_length=512,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


@needs_texts
@pytest.mark.slow
def test_an_item_gives_a_record_a_trial_and_a_prompt_that_is_kept_whole_is_exact(monkeypatch):
    rng = np.random.default_rng(0)
    tiny = Llama(CONFIG, {name: rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()})
    for module in (hidden, perplexity, retrieval):
        monkeypatch.setattr(module, "model", lambda: tiny)
    item = {"n": 384, "kind": "passkey", "first": 0, "last": 1, "of": 2, "attention": "exact", "budget": 384}
    exact = retrieval.run(item)
    assert [record["trial"] for record in exact] == [0, 1]
    assert exact == retrieval.run(item)
    for name in ("snapkv", "heavy-hitters", "largest-logits"):
        whole = retrieval.run({**item, "attention": name})
        assert [record["success"] for record in whole] == [record["success"] for record in exact]
        np.testing.assert_allclose([r["loss"] for r in whole], [r["loss"] for r in exact], rtol=2e-4)
        assert retrieval.run({**item, "attention": name, "budget": 24}) != whole
    with pytest.raises(ValueError, match="kind: 'number' came"):
        retrieval.run({**item, "kind": "number"})


def test_shares_are_counted_by_method_with_their_intervals():
    trial = {"n": 2048, "kind": "fact", "attention": "snapkv", "budget": 128}
    rows = [{**trial, "trial": t, "success": t < 30, "loss": 0.1 if t < 30 else 2.0} for t in range(50)]
    rows += [{**row, "attention": "exact", "budget": 2048, "success": True, "loss": 0.0} for row in rows]
    one, exact = shares(rows)
    assert (one.found, one.trials, exact.found, exact.trials) == (30, 50, 50, 50)
    np.testing.assert_allclose((one.low, one.high), wilson(30, 50), rtol=1e-12)
    assert one.probability == pytest.approx((30 * math.exp(-0.1) + 20 * math.exp(-2)) / 50, rel=1e-12)
    assert one.probability_low < one.probability < one.probability_high
    assert exact.probability_low == exact.probability_high == 1
    lines = retrieval_table(rows).splitlines()
    assert lines[2].startswith("| 2,048 | fact | 2,048 | exact | 50 of 50 (93% … 100%) | 1.00 (1.00 … 1.00) |")
    assert lines[3].startswith("| 2,048 | fact | 128 | chosen at the end of the prompt (SnapKV) | 30 of 50 (46% … 72%)")


def test_the_opponents_table_has_the_shipped_rows_of_the_same_windows_beside_them():
    rows = [
        {**row, "attention": "heavy-hitters"}
        for row in shipped_rows("sparsek-perplexity")
        if row["attention"] == "window-sinks" and row["n"] == 2048
    ]
    lines = opponents_table(rows).splitlines()
    assert len(lines) == 2 + 1 + 2 * 3
    assert [line for line in lines if "heavy hitters" in line and "1.00 (1.00 … 1.00)" in line]
    short = [{**row, "n": 512} for row in rows]
    assert len(opponents_table(short).splitlines()) == 2


@needs_texts
def test_a_passkey_is_hidden_by_the_sentence_that_the_shorter_experiment_has():
    prompt, other = prompt_of("passkey", 2048, 0), passkey.prompt_and_key(2048, 0.1, 0)
    m = len(passkey.QUESTION) // 4
    np.testing.assert_array_equal(prompt.tokens[-5 - m : -5], other.tokens[-5 - m : -5])
