"""A task whose right attention is k-conv: repeat what stood some places back, so many as the segment says (ours).

A text has k segments of equal length, and each has tokens of its own. The target at a place of segment s is the token
``lag_s`` places before it, if that is in the segment; nothing else counts. Logits that find it depend on the distance
and on the key's segment alone: a k-conv matrix with a start at every segment does it. Lags grow from one segment to the
next, so that where a target counts no key of an earlier segment is at that one's lag.
"""

from __future__ import annotations

import numpy as np

from refattn.training.batches import Batch

LAGS = (2, 3, 5, 7)
SYMBOLS = 16
"""Tokens of a segment."""
VOCAB_SIZE = SYMBOLS * len(LAGS)


def lag_batch(n: int, rows: int, seed: int, number: int) -> Batch:
    """Draw texts of n tokens, a multiple of the segments': the same seed and number give the same ones.

    >>> batch = lag_batch(32, 1, seed=0, number=0)
    >>> bool((batch.targets[0, 2:8] == batch.tokens[0, :6]).all()), int(batch.weights.sum())
    (True, 15)
    """
    if n % len(LAGS):
        raise ValueError(f"n: {n} came, a multiple of the {len(LAGS)} segments was wanted")
    length = n // len(LAGS)
    segments = np.arange(n) // length
    tokens = SYMBOLS * segments + np.random.default_rng([seed, number]).integers(SYMBOLS, size=(rows, n))
    before = np.arange(n) - np.array(LAGS)[segments]
    within = before >= length * segments
    targets = np.where(within, tokens[:, np.maximum(before, 0)], 0)
    return Batch(tokens, targets, np.broadcast_to(within, tokens.shape).astype(np.float32))
