"""The last step of a decoder: rows of the hidden state to losses, a block of rows at a time (ours).

    z = W h        loss = Σ_rows share · cross-entropy(z, target)

so that the logits of all rows never stand in memory. W is the embedding, unless there is an ``output.weight``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.models._batch import Batch
from refattn.models._finiteness import NotFiniteError
from refattn.models.layers.cross_entropy import cross_entropy_backward, cross_entropy_forward
from refattn.models.layers.linear import linear_backward, linear_forward
from refattn.models.layers.named import Gradients

_LOGITS = 1 << 21
"""Logits that are held at once, and"""
_LEAST_ROWS = 512
"""at least so many rows of them: a product with fewer rows takes longer a row."""


class Evaluation(NamedTuple):
    """How well the tokens of a batch were foretold.

    Attributes
    ----------
    loss : float
        Weighted mean of the losses, in nats.
    accuracy : float
        Weighted share of the targets that are right, from 0 to 1.
    losses : ndarray of float64, shape (batch, n)
        Cross-entropy of every target, in nats; NaN where the weight is zero.
    right : ndarray of bool, shape (batch, n)
        Whether a target (of several the most probable) is the token of the largest logit (of equal ones the first);
        False where the weight is zero.

    Examples
    --------
    `Decoder.evaluate` gives it.

    >>> Evaluation._fields
    ('loss', 'accuracy', 'losses', 'right')
    """

    loss: float
    accuracy: float
    losses: NDArray[np.float64]
    right: NDArray[np.bool_]


def evaluate_output(h: FloatArray, parameters: Mapping[str, FloatArray], batch: Batch) -> Evaluation:
    """Return what comes of the hidden state h, shape (batch, n, width)."""
    table, rows = parameters[_table(parameters)], h.reshape(-1, h.shape[-1])
    targets, probabilities = _by_row(batch)
    first = targets[np.arange(len(rows)), 0 if probabilities is None else probabilities.argmax(axis=-1)]
    losses, right = np.empty(len(rows)), np.empty(len(rows), bool)
    for block in _blocks(len(rows), len(table)):
        logits, _ = linear_forward(rows[block], table)
        losses[block], _ = cross_entropy_forward(logits, targets[block], _some(probabilities, block))
        right[block] = logits.argmax(axis=-1) == first[block]
    share = batch.shares.ravel()
    loss, counts = _mean(losses, share), (batch.shares > 0)
    right = right.reshape(counts.shape) & counts
    by_target = np.where(counts, losses.reshape(counts.shape), np.nan)
    return Evaluation(loss, min(float(right.ravel() @ share), 1.0), by_target, right)


def output_loss_and_gradient(
    h: FloatArray, parameters: Mapping[str, FloatArray], batch: Batch, gradients: Gradients
) -> tuple[float, FloatArray]:
    """Return the loss and the gradient of h, and add that of W."""
    name = _table(parameters)
    table, rows = parameters[name], h.reshape(-1, h.shape[-1])
    (targets, probabilities), share = _by_row(batch), batch.shares.ravel()
    losses, dh = np.empty(len(rows)), np.empty_like(rows)
    for block in _blocks(len(rows), len(table)):
        logits, of_logits = linear_forward(rows[block], table)
        losses[block], of_losses = cross_entropy_forward(logits, targets[block], _some(probabilities, block))
        # forward: losses, and their weighted mean
        dlogits = cross_entropy_backward(share[block], of_losses)
        # forward: logits = h @ table.T
        found = linear_backward(dlogits, of_logits, weight=gradients.want(name))
        dh[block] = found.x
        gradients.add(name, found.weight)
    return _mean(losses, share), dh.reshape(h.shape)


def _by_row(batch: Batch) -> tuple[NDArray[np.int64], FloatArray | None]:
    """Return targets and probabilities, (rows, m)."""
    m, found = batch.targets.shape[-1], batch.probabilities
    return batch.targets.reshape(-1, m), None if found is None else found.reshape(-1, m)


def _some(probabilities: FloatArray | None, block: slice) -> FloatArray | None:
    return None if probabilities is None else probabilities[block]


def _table(parameters: Mapping[str, FloatArray]) -> str:
    return "output.weight" if "output.weight" in parameters else "token_embd.weight"


def _blocks(rows: int, vocab_size: int) -> Iterator[slice]:
    step = max(_LEAST_ROWS, _LOGITS // vocab_size)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _mean(losses: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    loss = float(losses @ share)
    if not np.isfinite(loss):
        raise NotFiniteError("output", "the loss")
    return loss
