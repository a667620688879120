"""The table of baselines: each method computes what it says, and the choice within a limit is the best inside it."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import SlidingWindow, dense_attention
from refattn.experiments import tables
from refattn.experiments.compared import baselines
from refattn.experiments.compared.baselines import (
    BUDGETS,
    METHODS,
    BaselineRecord,
    compare,
    real_inputs,
    structured_inputs,
    within,
)
from refattn.testing import attention_inputs, relative_error


def record(method, budget, error, seconds, megabytes=1.0, inputs="x", refused=""):
    return BaselineRecord(inputs, method, budget, error, seconds, megabytes, refused)


@pytest.mark.slow
def test_the_window_with_sinks_is_the_one_of_exact_attention():
    q, k, v = attention_inputs(60, 8, seed=0)
    exact = dense_attention(q, k, v, mask=SlidingWindow(7, sinks=4))
    assert relative_error(METHODS["window with sinks"](q, k, v, 7), exact) < 1e-13


@pytest.mark.parametrize("method", ["exact", "conv, Recover", "conv, uniform", "SparseK", "window with sinks"])
def test_a_budget_of_everything_is_exact(method):
    q, k, v = attention_inputs(40, 4, seed=1)
    budget = 80 if method in ("SparseK", "window with sinks") else 40
    if method == "conv, Recover":
        q, k, v = structured_inputs(256)["rotary, 16 segments"]
        budget = 16
    assert relative_error(METHODS[method](q, k, v, budget), dense_attention(q, k, v)) < 1e-10


@pytest.mark.slow
def test_each_method_is_at_home_on_its_own_input():
    inputs = structured_inputs(256)
    budgets = {"exact": [256], "conv, Recover": [16], "low rank": [6], "random features": [16]}
    errors = {(r.inputs, r.method): r.error for r in compare(inputs, budgets, repeat=1)}
    assert errors["rotary, 16 segments", "conv, Recover"] < 1e-10
    assert errors["small logits, d = 4", "low rank"] < 1e-4
    assert errors["small logits, d = 4", "random features"] > 1e-3
    assert all(errors[name, "exact"] < 1e-13 for name in inputs)


def test_what_is_refused_is_said():
    q, k, v = attention_inputs(32, 64, seed=2, deviation=6.0)
    (found,) = compare({"wide": baselines.Inputs(q, k, v)}, {"low rank": [4]}, repeat=1)
    assert np.isnan(found.error)
    assert found.refused.startswith("bound: ")
    (found,) = compare({"many": attention_inputs(32, 64, seed=2, deviation=0.1)}, {"low rank": [6]}, repeat=1)
    assert "rank" in found.refused


def test_the_best_inside_the_limit_is_chosen():
    records = [
        record("exact", 1, 0.0, 1.0),
        record("a", 1, 0.5, 0.1),
        record("a", 2, 0.1, 0.2),
        record("a", 3, 0.01, 0.3),
        record("b", 1, 0.5, 0.9),
        record("b", 2, 0.2, 1.9),
        record("c", 1, np.nan, np.nan, np.nan, refused="no"),
        record("exact", 1, 0.0, 10.0, inputs="y"),
        record("a", 1, 0.4, 2.0, inputs="y"),
    ]
    chosen = within(records, "seconds", 0.25)
    assert [(r.inputs, r.method, r.budget) for r in chosen] == [
        ("x", "a", 2),
        ("x", "b", 1),
        ("x", "c", 1),
        ("y", "a", 1),
    ]
    assert np.isnan(chosen[1].error)
    assert "more seconds" in chosen[1].refused
    assert chosen[2].refused == "no"


def test_real_heads_are_one_of_every_layer():
    inputs = real_inputs()
    assert len(inputs) == 5
    assert all(q.shape == (2048, 64) and q.dtype == np.float64 for q, _, _ in inputs.values())
    assert set(BUDGETS) == set(METHODS)


@pytest.mark.slow
def test_the_experiment_and_its_table(monkeypatch):
    few = {"first": attention_inputs(64, 4, seed=3)}
    monkeypatch.setattr(baselines, "structured_inputs", lambda n: few)
    items = [item for item in baselines.EXPERIMENT.items([32]) if item["inputs"] == "first"]
    assert len(items) == sum(map(len, BUDGETS.values()))
    rows = [{**item, **record} for item in items for record in baselines.EXPERIMENT.run(item)]
    assert len(rows) == len(items)
    table = tables.baselines(rows)
    assert table.count("window with sinks") == 1
    assert "refused or too dear" in table or "budget" in table
