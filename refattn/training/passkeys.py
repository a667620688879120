"""Passkeys: some digits somewhere in a long text, asked for at its end (ours; a needle in a haystack of tokens).

    filler … filler  MARK d₁ … d_m  filler … filler  MARK d₁ … d_{m−1}

The targets that count are the m after the second mark. Fillers are 0 … n_fillers − 1, then the ten digits, then MARK.
The task: Mohtashami and Jaggi 2023, arXiv 2305.16300, in tokens instead of words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import as_count
from refattn.training._fillers import fillers
from refattn.training.batches import Batch

_DIGITS = 10


@dataclass(frozen=True)
class Passkeys:
    """The task: how long its texts are, and how long the key.

    Parameters
    ----------
    n : int
        Tokens in a text; at least ``2 n_digits + 1``.
    n_digits : int, optional
        Digits m of the key; at least 1.
    n_fillers : int, optional
        Number of different fillers; at least 1.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    A text takes O(n). Source: arXiv 2305.16300, section 4.2.

    Examples
    --------
    >>> task = Passkeys(n=64)
    >>> batch = task.batch(4, seed=0, number=0)
    >>> answers = task.answers(batch.tokens)
    >>> bool((answers[batch.weights > 0] == batch.targets[batch.weights > 0]).all()), int((answers >= 0).sum())
    (True, 20)
    """

    n: int
    n_digits: int = 5
    n_fillers: int = 64

    def __post_init__(self) -> None:
        as_count("n_digits", self.n_digits, least=1)
        as_count("n_fillers", self.n_fillers, least=1)
        as_count("n", self.n, least=2 * self.n_digits + 1)

    @property
    def vocab_size(self) -> int:
        """Fillers, digits and the mark."""
        return self.n_fillers + _DIGITS + 1

    def batch(self, rows: int, *, seed: int, number: int, held_out: bool = False) -> Batch:
        """Draw texts: the same seed and number give the same ones.

        Parameters
        ----------
        rows, seed, number, held_out : int, int, int, bool
            As for `refattn.training.Recall.batch`.
        """
        rng, tokens = fillers(self.n_fillers, rows, self.n, seed=seed, number=number, held_out=held_out)
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        mark, asked = self.vocab_size - 1, self.n - self.n_digits
        for row in range(rows):
            key = self.n_fillers + rng.integers(_DIGITS, size=self.n_digits)
            place = rng.integers(asked - self.n_digits)
            tokens[row, place : place + self.n_digits + 1] = [mark, *key]
            tokens[row, asked:] = [mark, *key[:-1]]
            targets[row, asked:], weights[row, asked:] = key, 1
        return Batch(tokens, targets, weights)

    def answers(self, tokens: ArrayLike) -> NDArray[np.int64]:
        """Answer texts exactly, by looking for the first mark: the oracle.

        Parameters
        ----------
        tokens : array_like of int, shape (rows, n)
            Of the task.

        Returns
        -------
        ndarray of int64, shape (rows, n)
            The key from the second mark on, −1 where nothing is asked.
        """
        texts = np.asarray(tokens)
        found = np.full(texts.shape, -1, np.int64)
        for row, text in enumerate(texts.tolist()):
            first = text.index(self.vocab_size - 1)
            second = text.index(self.vocab_size - 1, first + 1)
            found[row, second : second + self.n_digits] = text[first + 1 : first + 1 + self.n_digits]
        return found
