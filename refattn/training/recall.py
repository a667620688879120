"""Multi-query associative recall: keys and their values among fillers, every key asked for later (ours, after Zoology).

Arora et al. 2023 (arXiv 2312.04927, definition 3.1 and appendix E): a model that attends to what it needs answers every
query with the value that stood beside the key. Tokens are numbered

    fillers  0 … n_fillers − 1        keys  n_fillers … n_fillers + n_keys − 1        values  after the keys

The first half of a text holds the pairs, each a key and its value, at places drawn evenly; the second half asks for
every key once, the g-th place after the middle with a probability proportional to ``g^(power − 1)``: most are asked for
soon, some late, as in the paper. All else is fillers, drawn evenly; the paper's are drawn from all tokens, so that its
texts can hold a key twice. The target at a query is its key's value, and nothing else counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import as_count, as_real
from refattn.training._fillers import fillers
from refattn.training.batches import Batch


@dataclass(frozen=True)
class Recall:
    """The task: how long its texts are, and of what.

    Parameters
    ----------
    n : int
        Tokens in a text; at least 4.
    n_pairs : int
        Pairs in it; at most ``n // 4``, which is as many as fit, and `n_keys`.
    n_keys, n_values, n_fillers : int, optional
        Numbers of tokens of each kind; at least 1.
    power : float, optional
        The smaller, the sooner keys are asked for; above 0, and 1 for evenly.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range, or does not fit the others.

    Notes
    -----
    A text takes O(n). Source: arXiv 2312.04927, appendix E; fillers ours.

    Examples
    --------
    >>> task = Recall(n=64, n_pairs=8)
    >>> batch = task.batch(4, seed=0, number=0)
    >>> answers = task.answers(batch.tokens)
    >>> bool((answers[batch.weights > 0] == batch.targets[batch.weights > 0]).all()), int((answers >= 0).sum())
    (True, 32)
    """

    n: int
    n_pairs: int
    n_keys: int = 64
    n_values: int = 64
    n_fillers: int = 64
    power: float = 0.01

    def __post_init__(self) -> None:
        as_count("n", self.n, least=4)
        for name in ("n_keys", "n_values", "n_fillers"):
            as_count(name, getattr(self, name), least=1)
        as_count("n_pairs", self.n_pairs, least=1, most=self.n // 4, most_is="a quarter of n")
        as_count("n_pairs", self.n_pairs, least=1, most=self.n_keys, most_is="the keys there are")
        as_real("power", self.power, positive=True, most=1.0)

    @property
    def vocab_size(self) -> int:
        """Tokens of all kinds."""
        return self.n_fillers + self.n_keys + self.n_values

    def batch(self, rows: int, *, seed: int, number: int, held_out: bool = False) -> Batch:
        """Draw texts: the same seed and number give the same ones.

        Parameters
        ----------
        rows : int
            How many; at least 1.
        seed, number : int
            At least 0.
        held_out : bool, optional
            From another stream than those for training.
        """
        rng, tokens = fillers(self.n_fillers, rows, self.n, seed=seed, number=number, held_out=held_out)
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        middle = self.n // 2
        late = np.arange(1, self.n - middle + 1) ** (self.power - 1)
        for row in range(rows):
            keys = self.n_fillers + rng.choice(self.n_keys, self.n_pairs, replace=False)
            values = self.n_fillers + self.n_keys + rng.integers(self.n_values, size=self.n_pairs)
            places = 2 * rng.choice(middle // 2, self.n_pairs, replace=False)
            tokens[row, places], tokens[row, places + 1] = keys, values
            queries = middle + rng.choice(self.n - middle, self.n_pairs, replace=False, p=late / late.sum())
            tokens[row, queries], targets[row, queries], weights[row, queries] = keys, values, 1
        return Batch(tokens, targets, weights)

    def answers(self, tokens: ArrayLike) -> NDArray[np.int64]:
        """Answer texts exactly, by reading them from left to right: the oracle.

        Parameters
        ----------
        tokens : array_like of int, shape (rows, n)
            Of the task; the token after a key that comes for the first time is its value.

        Returns
        -------
        ndarray of int64, shape (rows, n)
            The value of every key that came before, −1 where nothing is asked.
        """
        texts = np.asarray(tokens)
        found = np.full(texts.shape, -1, np.int64)
        for row, text in enumerate(texts.tolist()):
            values: dict[int, int] = {}
            for place, token in enumerate(text):
                if not self.n_fillers <= token < self.n_fillers + self.n_keys:
                    continue
                if token in values:
                    found[row, place] = values[token]
                elif place + 1 < len(text):
                    values[token] = text[place + 1]
        return found
