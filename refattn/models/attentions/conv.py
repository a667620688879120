"""Conv attention in every layer (arXiv 2405.05219), with a basis found anew at every forward or with starts chosen.

A segment's kernel is the column of the logits at its start, whoever chose the start, so it depends on q and k, and the
derivative of what the forward computed goes through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._validation import FloatArray, as_array, as_count, as_option, as_real
from refattn.convbasis import (
    ConvBasis,
    ConvForwardCache,
    basis_from_starts,
    conv_attention_backward,
    conv_attention_forward,
)
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients

GRADIENTS = ("approximation", "attention")


class Recovered(NamedTuple):
    """Starts found by Recover at every forward: the paper's k, T, δ and ε."""

    n_basis: int
    probe: int
    delta: float
    eps: float


class ConvAttention(DifferentiableAttention):
    """Conv attention, the same in every layer; it has no parameters.

    Its basis has starts that are given, the same for every head (`starts`), or are spread evenly (`n_basis` alone), or
    are found by Recover, for every head at every forward (`n_basis`, `probe` and `delta`).

    Parameters
    ----------
    starts : array_like of int, shape (s,), optional
        Columns where segments start, ascending from 0, below the length of every text.
    n_basis : int, optional
        The most segments; texts shorter than that have one a column.
    probe, delta, eps : optional
        As for `refattn.convbasis.recover`.
    gradient : {"approximation", "attention"}, optional
        As for `refattn.convbasis.conv_attention_backward`.

    Raises
    ------
    TypeError, ValueError
        Not exactly one of `starts` and `n_basis` came, or `probe` without `delta`; a number is out of range, or the
        option unknown.

    Notes
    -----
    Time O(k n d + n d log n) a head, memory O(k n + n d), as `refattn.conv_attention`. Source: arXiv 2405.05219,
    Algorithm 1; its theorem on training for the gradient ``"attention"``.

    Examples
    --------
    With a segment for every column it is exact attention:

    >>> import numpy as np
    >>> from refattn.models import ConvAttention, ExactAttention
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 16, 4))
    >>> out = ConvAttention(n_basis=16)(0, q, k, v)
    >>> bool(np.allclose(out, ExactAttention()(0, q, k, v)))
    True
    """

    def __init__(
        self,
        *,
        starts: ArrayLike | None = None,
        n_basis: int | None = None,
        probe: int | None = None,
        delta: float | None = None,
        eps: float = 0.0,
        gradient: str = "approximation",
    ) -> None:
        if (starts is None) == (n_basis is None):
            raise TypeError(f"starts, n_basis: {'neither' if starts is None else 'both'} came, one of them was wanted")
        if (probe is None) != (delta is None) or (probe is not None and n_basis is None):
            raise TypeError("probe, delta: they find the starts of n_basis segments, all three or neither were wanted")
        self.gradient = as_option("gradient", gradient, GRADIENTS)
        self.starts = None if starts is None else _as_starts(starts)
        self.n_basis = None if n_basis is None else as_count("n_basis", n_basis, least=1)
        self.recovered: Recovered | None = None
        eps = as_real("eps", eps, least=0.0)
        if n_basis is not None and probe is not None:
            self.recovered = Recovered(
                n_basis, as_count("probe", probe, least=1), as_real("delta", delta, least=0.0), eps
            )
        elif eps:
            raise TypeError("eps: it came without probe and delta, which find the starts it is for")

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, ConvForwardCache]:
        """Attend with a conv basis of the logits.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`; the last two are not looked at.
        """
        n = q.shape[-2]
        if self.recovered is not None:
            found = self.recovered._replace(n_basis=min(self.recovered.n_basis, n), probe=min(self.recovered.probe, n))
            return conv_attention_forward(q, k, v, **found._asdict(), check_finite=False)
        basis = _basis(q, k, self._chosen(n))
        out, cache = conv_attention_forward(q, k, v, basis=basis, check_finite=False)
        return out, replace(cache, recovered=True)  # the kernels are columns of the logits, as those of Recover

    def backward(self, dout: FloatArray, cache: ConvForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v, the starts held fixed.

        Parameters
        ----------
        dout, cache : ndarray, ConvForwardCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        return LayerGradients(*conv_attention_backward(dout, cache, gradient=self.gradient))

    def _chosen(self, n: int) -> NDArray[np.int64]:
        """Return the starts among n columns: those given, or spread evenly."""
        if self.starts is None:
            assert self.n_basis is not None
            count = min(self.n_basis, n)
            return np.arange(count) * n // count
        if self.starts[-1] >= n:
            raise ValueError(f"starts: {self.starts[-1]} came, columns below the {n} of the text were wanted")
        return self.starts


def _as_starts(starts: ArrayLike) -> NDArray[np.int64]:
    array = as_array("starts", starts)
    if array.dtype.kind not in "iu":
        raise TypeError(f"starts: dtype {array.dtype} came, integers were wanted")
    if array.ndim != 1 or not array.size or array[0] != 0 or (np.diff(array) <= 0).any():
        raise ValueError(f"starts: {array!r} came, columns ascending from 0, shape (s,), were wanted")
    return array.astype(np.int64)


def _basis(q: FloatArray, k: FloatArray, starts: NDArray[np.int64]) -> ConvBasis:
    """Return the columns of every head's logits at the starts as a basis."""
    layout = HeadLayout.of(q, k, k)
    queries, keys, _ = layout.expand(q, k, k)
    heads = [basis_from_starts(queries[head], keys[head], starts) for head in np.ndindex(*layout.inner)]
    kernels = np.stack([one.kernels for one in heads]).reshape(*layout.lead, len(starts), -1)
    return ConvBasis(np.broadcast_to(starts, (*layout.lead, len(starts))), kernels)
