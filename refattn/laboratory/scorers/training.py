"""Training one layer's scorer: two stages of Adam, with a checkpoint after every pass over the windows (ours).

The parameters are those of `refattn.sparsek.sparsek_scores`, per key-value head, in units that make a step of one
length mean as much in each: the weights times the inputs' root mean square, the slope per 1,000 positions. First
`importance_loss` is minimised, which needs no attention and sees pairs that are not selected; then
`distillation_loss`, with soft gates, which is the distance the layer's output really has. Each is pulled back to
weight and slope by `refattn.sparsek.sparsek_scores_backward`.

The order of the windows follows from seed, layer and pass alone, and a checkpoint holds every bit of the state: a run
that was stopped and goes on ends with the same numbers as one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._npz import read_arrays, write_arrays
from refattn._validation import FloatArray
from refattn.laboratory.scorers.adam import AdamState, cosine_rate
from refattn.sparsek import sparsek_scores_backward, sparsek_scores_forward

Loss = Callable[[int, FloatArray], tuple[float, FloatArray]]
"""``loss(window, scores) -> (value, gradient)``, scores and gradient (H_kv, n)."""


class Stage(NamedTuple):
    """One loss, and how long and how fast it is minimised."""

    name: str
    passes: int
    batch: int
    rate: float


@dataclass(frozen=True)
class TrainingState:
    """Where training stands: stages finished, passes of the present one, and the mean loss of every pass so far.

    Adam's parameters are of shape (H_kv, width + 1), the slope last.
    """

    adam: AdamState
    stage: int = 0
    passes: int = 0
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


class Units(NamedTuple):
    """Scales between parameters and (weight, slope)."""

    inputs: NDArray[np.float64]
    position: float = 1000.0

    def parameters(self, weight: FloatArray, slope: FloatArray) -> NDArray[np.float64]:
        """Return the parameters of a scorer."""
        return np.concatenate([weight * self.inputs, slope[:, None] * self.position], axis=1)

    def scorer(self, parameters: NDArray[np.float64]) -> tuple[FloatArray, FloatArray]:
        """Return weight and slope as they are used, in float32."""
        weight = (parameters[:, :-1] / self.inputs).astype(np.float32)
        return weight, (parameters[:, -1] / self.position).astype(np.float32)

    def gradient(self, weight: FloatArray, slope: FloatArray) -> NDArray[np.float64]:
        """Return the gradient of the parameters."""
        return np.concatenate([weight / self.inputs, slope[:, None] / self.position], axis=1).astype(np.float64)


def input_units(inputs: Sequence[FloatArray]) -> Units:
    """Return the units of a layer: the root mean square of its inputs, but for each text's first token.

    The first token's input is an outlier in every layer; it would set the scale alone.
    """
    square = np.mean([np.square(x[1:], dtype=np.float64).mean(axis=0) for x in inputs], axis=0)
    return Units(np.sqrt(np.maximum(square, np.finfo(np.float32).tiny)))


def train(
    inputs: Sequence[FloatArray],
    stages: Sequence[tuple[Stage, Loss]],
    weight: FloatArray,
    slope: FloatArray,
    *,
    seed: Sequence[int],
    normalise: bool = False,
    fit_slope: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    on_pass: Callable[[TrainingState], None] | None = None,
) -> tuple[FloatArray, FloatArray, TrainingState]:
    """Minimise the losses of the stages, one after the other; return weight and slope in float32, and the last state.

    Parameters
    ----------
    inputs : sequence of ndarray, shape (n, width)
        Normalised inputs of the windows.
    stages : sequence of (Stage, Loss)
        What is minimised, in this order; Adam's moments start anew with each.
    weight, slope : ndarray, shapes (H_kv, width) and (H_kv,)
        Where to begin, if there is no checkpoint.
    seed : sequence of int
        Of the order of the windows.
    normalise, fit_slope : bool, optional
        Normalise the linear part of the scores over time; train the slope, which else stays as it is.
    checkpoint : path, optional
        Written after every pass, whole or not at all; if it exists, training goes on from it. A ValueError says that
        it is damaged, or of another training.
    on_pass : callable, optional
        ``on_pass(state)``, called after every pass.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((4, 50, 2)).astype(np.float32)
    >>> def loss(window, scores):
    ...     return float(np.square(scores).sum()), 2 * scores
    >>> _, _, state = train(x, [(Stage("square", 20, 2, 0.05), loss)], np.ones((1, 2)), np.zeros(1), seed=[0])
    >>> bool(state.losses[-1] < 0.1 * state.losses[0])
    True
    """
    units = input_units(inputs)
    state = TrainingState(AdamState.start(units.parameters(weight, slope)))
    options = {"normalise": normalise, "fit_slope": fit_slope}
    key = json.dumps([[stage._asdict() for stage, _ in stages], list(seed), len(inputs), list(weight.shape), options])
    if checkpoint is not None and Path(checkpoint).exists():
        state = read_checkpoint(checkpoint, key)
    while state.stage < len(stages):
        stage, loss = stages[state.stage]
        state = _one_pass(inputs, stage, loss, units, state, [*seed, state.stage, state.passes], **options)
        if checkpoint is not None:
            write_checkpoint(checkpoint, state, key)
        if on_pass is not None:
            on_pass(state)
    return *units.scorer(state.adam.parameters), state


def _one_pass(
    inputs: Sequence[FloatArray],
    stage: Stage,
    loss: Loss,
    units: Units,
    state: TrainingState,
    seed: Sequence[int],
    normalise: bool,
    fit_slope: bool,
) -> TrainingState:
    """Return the state after every window was used once, in batches."""
    order = np.random.default_rng(seed).permutation(len(inputs))
    batches = [order[at : at + stage.batch] for at in range(0, len(order), stage.batch)]
    adam, values = state.adam, []
    for batch in batches:
        gradient = np.zeros_like(adam.parameters)
        weight, slope = units.scorer(adam.parameters)
        for window in batch:
            scores, cache = sparsek_scores_forward(inputs[window], weight, slope, normalise=normalise)
            value, dscores = loss(int(window), scores)
            pulled = sparsek_scores_backward(dscores.astype(scores.dtype), cache)
            gradient += units.gradient(pulled.weight, pulled.slope * fit_slope) / len(batch)
            values.append(value)
        adam = adam.stepped(gradient, cosine_rate(adam.step, len(batches) * stage.passes, stage.rate))
    losses = np.append(state.losses, np.mean(values))
    if state.passes + 1 < stage.passes:
        return TrainingState(adam, state.stage, state.passes + 1, losses)
    return TrainingState(AdamState.start(adam.parameters), state.stage + 1, 0, losses)


_NAMES = ("parameters", "mean", "square", "counts", "losses", "key")


def write_checkpoint(path: str | os.PathLike[str], state: TrainingState, key: str) -> None:
    """Write a state, and the text that says of which training; an older file stays until the new one is complete."""
    adam = state.adam
    counts = np.array([adam.step, state.stage, state.passes], np.int64)
    text = np.frombuffer(key.encode("ascii"), np.uint8)
    write_arrays(
        path, dict(zip(_NAMES, (adam.parameters, adam.mean, adam.square, counts, state.losses, text), strict=True))
    )


def read_checkpoint(path: str | os.PathLike[str], key: str) -> TrainingState:
    """Read a state; a ValueError says that it is damaged, or of a training that `key` does not describe."""
    arrays = read_arrays(path, _NAMES)
    if arrays["key"].astype(np.uint8).tobytes() != key.encode("ascii"):
        raise ValueError(f"{path}: a checkpoint of another training; move it away, or choose another folder")
    if (
        arrays["counts"].shape != (3,)
        or not arrays["parameters"].shape == arrays["mean"].shape == arrays["square"].shape
    ):
        raise ValueError(f"{path}: not a checkpoint that can be used")
    step, stage, passes = (int(count) for count in arrays["counts"])
    adam = AdamState(arrays["parameters"], arrays["mean"], arrays["square"], step)
    return TrainingState(adam, stage, passes, arrays["losses"])
