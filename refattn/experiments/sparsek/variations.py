"""What the scorer of one layer reaches as each choice of its training is varied (ours).

Of the layers `LAYERS` of SmolLM2-135M, the scorer is fitted on ten essays and judged on two others, all of them among
those that the shipped scorers are fitted on: nothing here has seen held-out text. Each variant differs from the shipped
recipe, *importance, then distillation*, in what its name says. A record holds two relative squared distances of the
layer's outputs from exact attention's after the output projection, over the rows that do not see everything:

    distance         with gates of one, as the shipped model has them
    soft_distance    with the scores' soft gates in the model, weights normalised again
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.experiments.sparsek.perplexity import SINKS
from refattn.laboratory.scorers import finetune
from refattn.laboratory.scorers.finetune import SEED, SPLITS, layer_inputs, stage_losses
from refattn.laboratory.scorers.importance import LayerInputs, block_importance, ridge_scorer
from refattn.laboratory.scorers.texts import fitting_windows
from refattn.laboratory.scorers.training import Stage, train
from refattn.laboratory.smollm2 import NEEDS_ESSAYS, model
from refattn.models import sliding_window
from refattn.sparsek import sparsek_scores

LAYERS = (5, 14, 20)
BUDGET = 128
FITTED, JUDGED, MORE = tuple(range(10)), (10, 11), tuple(range(12, 20))
"""Windows, among those for fitting; the last for the recipe with more text."""

IMPORTANCE, DISTILLATION = finetune.RECIPES["learned"].stages[BUDGET]


class Recipe(NamedTuple):
    """How a scorer is fitted.

    `stages` follow the ridge regression; `worth` is what makes a pair worth keeping in the first: "distance",
    "attention", or the sum of both shares. With `hard`, gates are one in the forward of the distillation, and the
    gradient is the straight-through one. Scores are of the layer's "input", or of the "values" of all key-value heads,
    with a term for the position (`slope`) or without. `split` has the pairs selected and in the window.
    """

    stages: tuple[Stage, ...] = (IMPORTANCE, DISTILLATION)
    worth: tuple[str, ...] = ("distance", "attention")
    hard: bool = False
    normalise: bool = False
    slope: bool = True
    of: str = "input"
    split: tuple[int, int] = SPLITS[BUDGET]
    fitted: tuple[int, ...] = FITTED


WINDOW_AND_SINKS = "window + sinks"
RECIPES = {
    "ridge regression": Recipe(stages=()),
    "ridge, then distillation": Recipe(stages=(DISTILLATION,)),
    "importance": Recipe(stages=(IMPORTANCE,)),
    "importance of attention only, then distillation": Recipe(worth=("attention",)),
    "importance of distance only, then distillation": Recipe(worth=("distance",)),
    "importance, then distillation": Recipe(),
    "the same, importance kept in the second loss": Recipe(stages=(IMPORTANCE, DISTILLATION._replace(name="both"))),
    "the same, twice the passes": Recipe(
        stages=tuple(stage._replace(passes=2 * stage.passes) for stage in (IMPORTANCE, DISTILLATION))
    ),
    "the same, eight more essays": Recipe(fitted=FITTED + MORE),
    "the same, hard gates in training": Recipe(hard=True),
    "the same, scores normalised over time": Recipe(normalise=True),
    "the same, without a slope": Recipe(slope=False),
    "the same, scores of the values": Recipe(of="values"),
    "the same, 32 selected and a window of 96": Recipe(split=(32, 96)),
    "the same, 96 selected and a window of 32": Recipe(split=(96, 32)),
}
"""Name and recipe of every variant."""


@cache
def _inputs(n: int, window: int) -> dict[int, FloatArray]:
    """Return the normalised inputs of the layers on one window of n tokens."""
    found = finetune.observed_inputs(model(), fitting_windows(n)[window])
    return {layer: x for layer, x in found.items() if layer in LAYERS}


@cache
def _window(n: int, layer: int, window: int) -> LayerInputs:
    """Return what a layer sees and does on a window."""
    return layer_inputs(model(), layer, _inputs(n, window)[layer])


@cache
def _worth(n: int, layer: int, window: int) -> dict[str, FloatArray]:
    """Return importance and attention of the pairs of a window."""
    return dict(zip(("distance", "attention"), block_importance(_window(n, layer, window)), strict=True))


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, layer and variant."""
    names = [WINDOW_AND_SINKS, *RECIPES]
    return [{"n": n, "layer": layer, "variant": name} for n in sizes for layer in LAYERS for name in names]


def run(item: Item) -> list[Record]:
    """Fit the scorer of one layer by one recipe, and judge it."""
    n, layer, variant = item["n"], item["layer"], item["variant"]
    with one_blas_thread():
        judged = [_window(n, layer, window) for window in JUDGED]
        if variant == WINDOW_AND_SINKS:
            distances = [one.distance(sliding_window(BUDGET, SINKS)(layer, *one[1:4]), BUDGET) for one in judged]
            return [{"distance": significant(float(np.mean(distances))), "soft_distance": None}]
        recipe = RECIPES[variant]
        weight, slope = _fit(recipe, n, layer)
        n_select, window = recipe.split
        scores = [sparsek_scores(_scored(recipe, one), weight, slope, normalise=recipe.normalise) for one in judged]
        found: Record = {}
        for name, hard in (("distance", True), ("soft_distance", False)):
            losses = stage_losses(judged, [], n_select=n_select, window=window, hard=hard)["distillation"]
            found[name] = significant(float(np.mean([losses(place, z)[0] for place, z in enumerate(scores)])))
    return [found]


def _scored(recipe: Recipe, one: LayerInputs) -> FloatArray:
    """Return what the scores are linear in, shape (n, features)."""
    return one.x if recipe.of == "input" else np.ascontiguousarray(one.v.swapaxes(0, 1).reshape(len(one.x), -1))


def _fit(recipe: Recipe, n: int, layer: int) -> tuple[FloatArray, FloatArray]:
    """Return weight and slope."""
    layers = [_window(n, layer, place) for place in recipe.fitted]
    worth = [_worth(n, layer, place) for place in recipe.fitted]
    inputs = [_scored(recipe, one) for one in layers]
    n_select, window = recipe.split
    weight, slope = ridge_scorer(inputs, [tables["attention"] for tables in worth], window=window)
    total = {name: sum(float(tables[name].sum(dtype=np.float64)) for tables in worth) for name in recipe.worth}
    shares = [np.sum([tables[name] / total[name] for name in recipe.worth], axis=0) for tables in worth]

    losses = stage_losses(layers, shares, n_select=n_select, window=window, hard=recipe.hard)
    weight, slope, _ = train(
        inputs,
        [(stage, losses[stage.name]) for stage in recipe.stages],
        weight,
        slope if recipe.slope else np.zeros_like(slope),
        seed=[SEED, layer],
        normalise=recipe.normalise,
        fit_slope=recipe.slope,
    )
    return weight, slope


EXPERIMENT = Experiment(
    name="sparsek-variations",
    question="What do loss, gates, normalisation, slope, scored quantity and split change in one layer?",
    sizes=(2048,),
    quick_sizes=(384,),
    items=items,
    run=run,
    needs=NEEDS_ESSAYS,
)
