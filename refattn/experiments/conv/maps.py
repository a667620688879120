"""Maps of logits and of attention, and the conv basis, drawn, with the numbers behind them (arXiv 2405.05219).

The paper shows heat maps in which diagonals can be seen; the authors' public code draws them of *logits*, centred, not
of attention. ``python -m refattn.experiments.conv.maps --out FILE`` draws both, for heads of SmolLM2-135M reading
Hamlet (the shipped ones; no weights are needed): the logits ``q·k/√d`` less their mean, exact attention, attention by
the best k-conv basis of the logits, and the kernels of that basis. The experiment ``maps`` says what cannot be seen:
how much of a head's logits a k-conv matrix can explain, ``1 − ‖H − H'‖² / ‖H − mean H‖²``, for the best starts there
are, and how much attention goes to the first token and to the nearest tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn._files import replacing
from refattn._validation import FloatArray
from refattn.convbasis import best_starts, least_squares_basis
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.testing.real_heads import RealHeads, load_real_heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = (1, 4, 16, 64)
NEAREST = 16
"""Tokens that count as near, the query's own among them."""


@cache
def heads() -> RealHeads:
    """Return the shipped heads, in float64."""
    return load_real_heads(dtype=np.float64)


def head(layer: int, place: int, n: int) -> tuple[FloatArray, FloatArray]:
    """Return q and k of a shipped head, its first n rows."""
    real = heads()
    index = real.layers.tolist().index(layer)
    return real.q[index, place, :n], real.k[index, 0, :n]


def probabilities(logits: FloatArray) -> FloatArray:
    """Return softmax of the causal part of every row."""
    allowed = np.tril(np.ones(logits.shape, bool))
    weights = np.exp(np.where(allowed, logits, -np.inf) - np.where(allowed, logits, -np.inf).max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


class Maps(NamedTuple):
    """What can be drawn of a head, each (n, n): the logits less the mean of the causal ones, and their softmax.

    Above the diagonal, where there is nothing, the logits are NaN and the attention is 0.
    """

    logits: FloatArray
    attention: FloatArray


def maps_of(layer: int, place: int, n: int) -> Maps:
    """Return both maps of a shipped head."""
    q, k = head(layer, place, n)
    logits = q @ k.T / np.sqrt(q.shape[1])
    lower = np.tril(np.ones(logits.shape, bool))
    return Maps(np.where(lower, logits - logits[lower].mean(), np.nan), probabilities(logits))


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length and shipped head."""
    real = heads()
    places = range(real.q.shape[1])
    return [{"n": n, "layer": int(layer), "head": place} for n in sizes for layer in real.layers for place in places]


def run(item: Item) -> list[Record]:
    """Measure one head."""
    n = item["n"]
    q, k = head(item["layer"], item["head"], n)
    logits = q @ k.T / np.sqrt(q.shape[1])
    weights = probabilities(logits)
    lower = logits[np.tril_indices(n)]
    best = best_starts(q, k, min(max(COUNTS), n))
    variation = float(np.square(lower - lower.mean()).sum())
    return [
        {
            "deviation": significant(float(lower.std())),
            **{
                f"explained_by_{count}": significant(1 - float(best.squared_error[count - 1]) / variation)
                for count in COUNTS
                if count <= n
            },
            "on_first": significant(float(weights[NEAREST:, 0].mean())),
            "on_nearest": significant(float(np.tril(np.triu(weights, 1 - NEAREST))[NEAREST:].sum(axis=1).mean())),
        }
    ]


def drawn(n: int, count: int) -> Figure:
    """Return a figure of one head of every shipped layer: logits, attention, the same by k = `count` terms, these."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = heads().layers.tolist()
    figure = Figure(figsize=(14.5, 3.1 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(layers), 4, squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        q, k = head(layer, 0, n)
        basis = least_squares_basis(q, k, best_starts(q, k, count).starts[count - 1])
        logits, attention = maps_of(layer, 0, n)
        limit = float(np.nanmax(np.abs(logits)))
        image = row[0].imshow(logits, vmin=-limit, vmax=limit, cmap="coolwarm", interpolation="nearest")
        row[0].set(title=f"layer {layer}: logits", xlabel="key", ylabel="query")
        figure.colorbar(image, ax=row[0], label="logit less the mean")
        for ax, weights, title in (
            (row[1], attention, "attention"),
            (row[2], probabilities(basis.to_dense()), f"attention, best {count}-conv basis"),
        ):
            shown = np.log10(np.maximum(weights, 1e-6))
            image = ax.imshow(shown, vmin=-5, vmax=0, cmap="viridis", interpolation="nearest")
            ax.set(title=title, xlabel="key", ylabel="query")
        figure.colorbar(image, ax=row[2], label="log₁₀ attention")
        for start, kernel in zip(basis.starts, basis.kernels, strict=True):
            row[3].plot(kernel[: n - start], linewidth=0.8, label=f"from column {start}")
        row[3].set(title="its kernels", xlabel="distance i − j", ylabel="logit")
        if count <= 8:
            row[3].legend(fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the maps."""
    parser = argparse.ArgumentParser(prog="python -m refattn.experiments.conv.maps", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG to write")
    parser.add_argument("--tokens", type=int, default=256, help="rows and columns of the maps")
    parser.add_argument("--k", type=int, default=4, help="segments of the conv basis")
    options = parser.parse_args(arguments)
    figure = drawn(options.tokens, options.k)
    with replacing(options.out) as file:
        figure.savefig(file, format="png", dpi=110)
    print(options.out)
    return 0


EXPERIMENT = Experiment(
    name="maps",
    question="Are the diagonals that can be seen in attention maps a conv basis?",
    sizes=(512, 2048),
    quick_sizes=(128,),
    items=items,
    run=run,
)


if __name__ == "__main__":
    raise SystemExit(main())
