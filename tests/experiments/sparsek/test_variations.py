"""What is varied in learning the scores: every variant runs, learning beats its beginning, the page has the table."""

from pathlib import Path

import numpy as np
import pytest

from refattn.experiments.records import read_records
from refattn.experiments.sparsek import variations
from refattn.experiments.sparsek.variations import FITTED, RECIPES, WINDOW_AND_SINKS, items, run
from refattn.experiments.tables import sparsek_variations as table
from refattn.laboratory.scorers.training import Stage

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "explanation" / "sparsek-learned.md"


def test_every_recipe_but_the_regression_differs_from_the_others():
    assert len(set(RECIPES.values())) == len(RECIPES)
    assert len(items([2048])) == 3 * (len(RECIPES) + 1)


def test_the_page_has_the_table_of_the_shipped_records():
    assert table(read_records(DOCS / "records" / "sparsek-variations.jsonl").rows()).strip() in PAGE.read_text("utf-8")


@pytest.mark.long
@pytest.mark.needs(*variations.EXPERIMENT.needs)
def test_every_variant_can_be_fitted_and_the_shipped_one_beats_window_and_regression(monkeypatch):
    n, layer, shipped = 384, 5, "importance, then distillation"
    monkeypatch.setattr(variations, "LAYERS", (layer,))
    for name, recipe in RECIPES.items():
        stages = recipe.stages
        if name not in ("ridge regression", shipped):
            stages = tuple(Stage(stage.name, 2, stage.batch, stage.rate) for stage in recipe.stages)
        fitted = FITTED[:4] + recipe.fitted[len(FITTED) :][:1]  # the model takes a second for a window
        monkeypatch.setitem(RECIPES, name, recipe._replace(stages=stages, fitted=fitted))
    found = {name: run({"n": n, "layer": layer, "variant": name})[0] for name in (WINDOW_AND_SINKS, *RECIPES)}
    distance = {name: record["distance"] for name, record in found.items()}
    assert all(np.isfinite(value) for value in distance.values())
    assert distance[shipped] < distance["ridge regression"] < distance[WINDOW_AND_SINKS]
    again = run({"n": n, "layer": layer, "variant": "the same, hard gates in training"})[0]
    assert again == found["the same, hard gates in training"]
