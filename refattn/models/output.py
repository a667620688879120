"""The last step of a decoder: rows of the hidden state to losses, a block of rows at a time (ours).

    z = W h        loss = Σ share · (log Σ_j exp(z_j) − z_target)

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
        Whether a target is the token of the largest logit (of equal ones the first); False where the weight is zero.

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
    table, rows, targets = parameters[_table(parameters)], h.reshape(-1, h.shape[-1]), batch.targets.ravel()
    losses, right = np.empty(len(rows)), np.empty(len(rows), bool)
    for block in _blocks(len(rows), len(table)):
        logits, _ = linear_forward(rows[block], table)
        losses[block], _ = cross_entropy_forward(logits, targets[block])
        right[block] = logits.argmax(axis=-1) == targets[block]
    share = batch.shares.ravel()
    loss, counts = _mean(losses, share), (batch.shares > 0)
    losses, right = losses.reshape(counts.shape), right.reshape(counts.shape) & counts
    return Evaluation(loss, min(float(right.ravel() @ share), 1.0), np.where(counts, losses, np.nan), right)


def output_loss_and_gradient(
    h: FloatArray, parameters: Mapping[str, FloatArray], batch: Batch, gradients: Gradients
) -> tuple[float, FloatArray]:
    """Return the loss and the gradient of h, and add that of W."""
    name = _table(parameters)
    table, rows = parameters[name], h.reshape(-1, h.shape[-1])
    targets, share = batch.targets.ravel(), batch.shares.ravel()
    losses, dh = np.empty(len(rows)), np.empty_like(rows)
    for block in _blocks(len(rows), len(table)):
        logits, of_logits = linear_forward(rows[block], table)
        losses[block], of_losses = cross_entropy_forward(logits, targets[block])
        # forward: losses, and their weighted mean
        dlogits = cross_entropy_backward(share[block], of_losses)
        # forward: logits = h @ table.T
        found = linear_backward(dlogits, of_logits, weight=gradients.want(name))
        dh[block] = found.x
        gradients.add(name, found.weight)
    return _mean(losses, share), dh.reshape(h.shape)


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
