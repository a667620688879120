"""Batches of windows over a sequence of tokens: each follows from the seed and its number alone (ours).

A window is n tokens and, as targets, the n that come one place later. A pass over the sequence takes every one of its
``(N − 1)//n`` windows once, in an order of its own, from an offset of its own below ``N − n (N − 1)//n``. Batch i holds
windows i B … i B + B − 1 of the endless sequence of passes: nothing else has to be remembered to go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, as_count
from refattn.models.token_distribution import TokenDistribution


class Batch(NamedTuple):
    """What a model is trained on in one step.

    Attributes
    ----------
    tokens : ndarray of int64, shape (batch, n)
        Token numbers.
    targets : ndarray of int64, shape (batch, n), or TokenDistribution
        For each what the model should say after it, one token or a distribution over some.
    weights : ndarray, shape (batch, n), or None
        How much every target counts, float32, at least 0; None: all the same.

    Examples
    --------
    >>> batch = Batch(np.array([[3, 1]]), np.array([[1, 4]]))
    >>> batch.weights is None
    True
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64] | TokenDistribution
    weights: FloatArray | None = None


class Windows:
    """Batches of windows of a sequence of tokens.

    Parameters
    ----------
    tokens : array_like of int, shape (N,)
        The sequence; memory-mapped if it is long. More than n tokens.
    n : int
        Tokens in a window; at least 1.
    batch : int
        Windows in a batch; at least 1.
    seed : int
        Of order and offset of every pass; at least 0.

    Attributes
    ----------
    count : int
        Windows in a pass.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range, `tokens` are not whole numbers in one axis, or too few.

    Notes
    -----
    A batch takes O(batch · n), and the first of a pass O(N/n) for its order, which is kept. Source: ours.

    Examples
    --------
    >>> windows = Windows(np.arange(100), n=4, batch=2, seed=0)
    >>> batch = windows(3)
    >>> bool((batch.targets == batch.tokens + 1).all()), windows.count
    (True, 24)
    >>> starts = sorted(int(start) for step in range(12) for start in windows(step).tokens[:, 0])
    >>> bool((np.diff(starts) == 4).all())
    True
    """

    def __init__(self, tokens: Any, n: int, batch: int, seed: int) -> None:
        self._tokens = _checked(tokens, as_count("n", n, least=1))
        self._n, self._batch, self._seed = n, as_count("batch", batch, least=1), as_count("seed", seed, least=0)
        self.count = (len(self._tokens) - 1) // n
        self._starts = lru_cache(maxsize=2)(self._starts_of_pass)

    def __call__(self, step: int) -> Batch:
        """Return a batch by its number.

        Parameters
        ----------
        step : int
            At least 0.
        """
        first = as_count("step", step, least=0) * self._batch
        numbers = (divmod(number, self.count) for number in range(first, first + self._batch))
        return _windows_at(self._tokens, [int(self._starts(one)[place]) for one, place in numbers], self._n)

    def _starts_of_pass(self, number: int) -> NDArray[np.int64]:
        """Return where the windows of a pass start, in its order."""
        rng = np.random.default_rng([self._seed, number])
        offset = rng.integers(len(self._tokens) - self.count * self._n)
        return np.asarray(offset + self._n * rng.permutation(self.count), np.int64)


def windows_in_order(tokens: Any, n: int, batch: int, most: int | None = None) -> Iterator[Batch]:
    """Yield windows one after the other, to measure a loss on.

    Parameters
    ----------
    tokens, n, batch : array_like of int, int, int
        As for `Windows`. The last batch may be smaller.
    most : int, optional
        So many windows, spread evenly over the sequence; all by default.

    Yields
    ------
    Batch
        The next ones.

    Raises
    ------
    TypeError, ValueError
        As for `Windows`.

    Notes
    -----
    A batch takes O(batch · n). Source: ours.

    Examples
    --------
    >>> [batch.tokens.tolist() for batch in windows_in_order(np.arange(8), n=2, batch=2)]
    [[[0, 1], [2, 3]], [[4, 5]]]
    """
    tokens, batch = _checked(tokens, as_count("n", n, least=1)), as_count("batch", batch, least=1)
    starts = np.arange(0, len(tokens) - n, n)
    if most is not None and as_count("most", most, least=1) < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, most).astype(np.int64)]
    for at in range(0, len(starts), batch):
        yield _windows_at(tokens, starts[at : at + batch].tolist(), n)


def _checked(tokens: Any, n: int) -> NDArray[Any]:
    """Return the sequence where it lies, checked but for its entries: those that are used go through the model."""
    found: NDArray[Any] = np.asanyarray(tokens)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise TypeError(f"tokens: shape {found.shape} of {found.dtype} came, whole numbers in one axis were wanted")
    if len(found) <= n:
        raise ValueError(f"tokens: {len(found)} came, more than the {n} of a window were wanted")
    return found


def _windows_at(tokens: NDArray[Any], starts: list[int], n: int) -> Batch:
    both = np.array([tokens[start : start + n + 1] for start in starts], np.int64)
    return Batch(both[:, :-1].copy(), both[:, 1:].copy())
