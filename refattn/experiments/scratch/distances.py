"""What a decoder gets right by how far back it has to look (ours)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
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


def of_queries(batch: Batch) -> NDArray[np.int64]:
    """Return how far back what is asked for came: the token before every target."""
    return distances(batch.tokens)


def of_repeated(batch: Batch) -> NDArray[np.int64]:
    """Return for targets within a capitalised word or a number that came before how far back it did, else 0.

    Tokens are bytes. The first two letters, which no earlier place tells, do not count. Words have four letters or
    more, numbers three digits or more.
    """
    found = np.zeros(batch.tokens.shape, np.int64)
    targets = np.asarray(batch.targets)
    for row, tokens in enumerate(batch.tokens):
        text = bytes(token if token < 256 else 0 for token in [*tokens.tolist(), int(targets[row, -1])])
        last: dict[bytes, int] = {}
        for match in _REPEATED.finditer(text):
            start, word = match.start(), match.group()
            if word in last:
                found[row, start + 1 : match.end() - 1] = start - last[word]  # the target at a place comes after it
            last[word] = start
    return found


_REPEATED = re.compile(rb"(?<![A-Za-z])[A-Z][A-Za-z]{3,}(?![A-Za-z])|(?<!\d)\d{3,}(?!\d)")


def by_distance(
    model: Any, batches: Iterable[Batch], attention: Any, far_back: Callable[[Batch], NDArray[np.int64]] = of_queries
) -> Iterator[Share]:
    """Yield what a model makes of batches whose weights are 0 or 1: of all targets, then by powers of two."""
    parts = []
    for batch in batches:
        found = model.evaluate(batch.tokens, batch.targets, batch.weights, attention=attention)
        counts = np.ones(batch.tokens.shape, bool) if batch.weights is None else batch.weights > 0
        parts.append([array[counts] for array in (far_back(batch), found.losses, found.right)])
    far, losses, right = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    yield Share(None, far.size, float(losses.mean()), float(right.mean()))
    groups = np.where(far > 0, 1 << np.ceil(np.log2(np.maximum(far, 1))).astype(np.int64), 0)
    for distance in np.unique(groups).tolist():
        some = groups == distance
        yield Share(distance, int(some.sum()), float(losses[some].mean()), float(right[some].mean()))
