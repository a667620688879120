"""Sharing out pairs among layers: where a pair buys the most (ours).

Layers differ by a factor of a hundred in what they lose at one budget. Let ``e_l(k, w)`` be the relative squared
distance of layer l's output, after its projection, with k pairs selected and a window of w, and a_l how large that
output is beside the residual stream it is added to. The counts minimise

    Σ_l a_l e_l(k_l, w_l)     subject to     Σ_l (k_l + w_l) ≤ L · mean

over a few choices a layer, exactly, by a dynamic programme over layers and pairs left: the cache of the whole model and
the products a token costs are those of `mean` pairs in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from refattn._validation import FloatArray
from refattn.laboratory.scorers.importance import LayerInputs, squared
from refattn.sparsek import sparsek_attention

Counts = tuple[int, int]

CHOICES: tuple[Counts, ...] = (
    (16, 48), (32, 32), (24, 72), (48, 48), (32, 96), (48, 80), (64, 64), (48, 144), (96, 96), (64, 192), (128, 128),
    (192, 192),
)  # fmt: skip
"""Pairs selected and in the window that a layer may get."""

FIRST_ROW = 256
"""Rows before see nearly everything, and are not judged."""


def choice_losses(
    layer: LayerInputs, scores: FloatArray, choices: Sequence[Counts] = CHOICES
) -> tuple[float, dict[Counts, float]]:
    """Return ``‖T Oᵀ‖²`` a row of a layer's exact output, and the relative distance with every choice (k, w)."""
    exact = layer.projected(layer.out, FIRST_ROW)
    losses = {}
    for k, w in choices:
        out = sparsek_attention(layer.q, layer.k, layer.v, scores, n_select=k, window=w, gate="none")
        losses[k, w] = layer.distance(out, FIRST_ROW)
    return squared(exact) / len(exact), losses


def share_out(losses: Sequence[Mapping[Counts, float]], mean: int) -> list[Counts]:
    """Return the choice (k, w) of every layer, of least total loss, with `mean` pairs a layer at the most.

    `losses` has ``a_l e_l(k, w)`` of every choice, by layer. Exact; time O(L · choices · L mean / g) with g the
    greatest common divisor of the sizes. A ValueError says that even the smallest choices are too large.

    >>> share_out([{(1, 1): 5.0, (2, 2): 1.0}, {(1, 1): 0.2, (2, 2): 0.1}], mean=3)
    [(2, 2), (1, 1)]
    """
    unit = math.gcd(*(k + w for choices in losses for k, w in choices))
    total = len(losses) * mean // unit
    best = np.zeros(total + 1)  # least loss of the layers so far with at most so many units
    taken: list[list[Counts | None]] = []
    for choices in losses:
        now = np.full(total + 1, np.inf)
        how: list[Counts | None] = [None] * (total + 1)
        for (k, w), loss in choices.items():
            size = (k + w) // unit
            for room in range(size, total + 1):
                if best[room - size] + loss < now[room]:
                    now[room], how[room] = best[room - size] + loss, (k, w)
        best = now
        taken.append(how)
    if not np.isfinite(best[total]):
        raise ValueError(f"mean: {mean} came, room for the smallest choice of every layer was wanted")
    counts: list[Counts] = []
    room = total
    for how in reversed(taken):
        choice = how[room]
        assert choice is not None
        counts.append(choice)
        room -= sum(choice) // unit
    return counts[::-1]
