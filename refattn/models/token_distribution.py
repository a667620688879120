"""A distribution over some tokens at every place of a batch: what a model is taught to say by another model (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import FloatArray, as_array, as_real_array, require_finite

_SUM = 1e-4
"""How far from one the sum of the probabilities may be: float32 keeps them to 1e-7, and there are some hundred."""


@dataclass(frozen=True)
class TokenDistribution:
    """Probabilities of m tokens at every place; all others have none.

    Parameters
    ----------
    tokens : array_like of int, shape (batch, n, m)
        Token numbers.
    probabilities : array_like, shape (batch, n, m)
        Of each, at least 0; they sum to 1 at every place.

    Raises
    ------
    TypeError, ValueError
        Tokens are not whole numbers, shapes differ, or the probabilities are not such.

    Notes
    -----
    As the targets of a `Decoder` it makes the loss the cross-entropy with this distribution: its Kullback-Leibler
    divergence from the decoder's, and its own entropy. Memory O(batch n m). Source: Hinton et al. 2015, arXiv
    1503.02531 (distillation), cut to m tokens.

    Examples
    --------
    Half the next token that came, half what another model expected:

    >>> came, expected = np.array([[4, 1]]), TokenDistribution([[[1], [1]]], [[[1.0], [1.0]]])
    >>> mixed = expected.mixed_with(came, 0.5)
    >>> mixed.tokens.tolist(), mixed.probabilities.tolist()
    ([[[1, 4], [1, 1]]], [[[0.5, 0.5], [0.5, 0.5]]])
    """

    tokens: NDArray[np.int64]
    probabilities: FloatArray

    def __post_init__(self) -> None:
        tokens, found = as_array("tokens", self.tokens), as_real_array("probabilities", self.probabilities)
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens: dtype {tokens.dtype} came, integers were wanted")
        if tokens.ndim != 3 or 0 in tokens.shape or found.shape != tokens.shape:
            raise ValueError(
                f"tokens, probabilities: shapes {tokens.shape} and {found.shape} came, both (batch, n, m), each at"
                " least 1, was wanted"
            )
        require_finite("probabilities", found)
        if found.min() < 0:
            raise ValueError(f"probabilities: {found.min()} came, at least 0 was wanted")
        sums = found.sum(axis=-1, dtype=np.float64)
        if np.abs(sums - 1).max() > _SUM:
            place = tuple(int(i) for i in np.argwhere(np.abs(sums - 1) > _SUM)[0])
            raise ValueError(f"probabilities: they sum to {sums[place]} at {place}, 1 was wanted")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "probabilities", found)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the places: (batch, n)."""
        return self.tokens.shape[:-1]

    @property
    def size(self) -> int:
        """How many places there are."""
        return int(np.prod(self.shape))

    def __getitem__(self, texts: slice) -> TokenDistribution:
        """Return some texts of the batch."""
        return TokenDistribution(self.tokens[texts], self.probabilities[texts])

    def mixed_with(self, targets: ArrayLike, share: float) -> TokenDistribution:
        """Return ``(1 − share)`` of this one and `share` of being the target.

        Parameters
        ----------
        targets : array_like of int, shape (batch, n)
            A token for every place.
        share : float
            From 0 to 1.
        """
        hard = np.asarray(targets)[..., None]
        kept = np.multiply(self.probabilities, 1 - share)
        return TokenDistribution(
            np.concatenate([self.tokens, hard], axis=-1),
            np.concatenate([kept, np.full(hard.shape, share, kept.dtype)], axis=-1),
        )
