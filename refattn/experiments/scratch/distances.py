"""What a decoder gets right by how far back it has to look (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn.training.batches import Batch


class Share(NamedTuple):
    """Targets whose distance is above half of `distance` and at most that; all of them where it is None."""

    distance: int | None
    targets: int
    loss: float
    accuracy: float


def distances(tokens: ArrayLike) -> NDArray[np.int64]:
    """Return for every token how far back it came last, 0 where it did not, shape (batch, n).

    >>> distances([[5, 3, 5, 5]])
    array([[0, 0, 2, 1]])
    """
    texts = np.asarray(tokens)
    found = np.zeros(texts.shape, np.int64)
    for row, text in enumerate(texts.tolist()):
        last: dict[int, int] = {}
        for place, token in enumerate(text):
            found[row, place] = place - last.get(token, place)
            last[token] = place
    return found


def by_distance(model: Any, batches: Iterable[Batch], attention: Any) -> Iterator[Share]:
    """Yield what a model makes of batches whose weights are 0 or 1: of all targets, then by powers of two."""
    parts = []
    for batch in batches:
        found = model.evaluate(batch.tokens, batch.targets, batch.weights, attention=attention)
        counts = np.ones(batch.tokens.shape, bool) if batch.weights is None else batch.weights > 0
        parts.append([array[counts] for array in (distances(batch.tokens), found.losses, found.right)])
    far, losses, right = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    yield Share(None, far.size, float(losses.mean()), float(right.mean()))
    groups = np.where(far > 0, 1 << np.ceil(np.log2(np.maximum(far, 1))).astype(np.int64), 0)
    for distance in np.unique(groups).tolist():
        some = groups == distance
        yield Share(distance, int(some.sum()), float(losses[some].mean()), float(right[some].mean()))
