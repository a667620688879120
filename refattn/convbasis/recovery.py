"""Recover and Search: find a conv basis from Q and K without forming Q Kᵀ (arXiv 2405.05219, Algorithms 2 and 3).

Notation of the paper, 1-based there and 0-based here: segment i starts at column s; v holds the first T entries of the
cumulative kernel u; a column is probed by the ℓ1 distance α between its first T entries and v. The binary search rests
on a monotone predicate, which (T, δ)-non-degeneracy provides: α < δ − 2Tε up to the next start, α ≥ δ − 2Tε from it on.

What the text leaves open is settled here as follows.

- The first start is column 0, whatever the predicate says there: ``exp`` of an empty segment is 1, not 0, so the exp
  transform needs a term that covers every column.
- Search returns its right end without having probed it. The end is probed; where the predicate is false no further
  segment exists, and Recover stops with fewer than k terms.
- The last column that can be probed is n − T (fewer than T rows are left beyond it). No segment starts after it, so
  with T > 1 at most n − T + 1 terms are found and k = n needs T = 1.
- δ ≤ 2Tε makes the predicate true everywhere: every column starts a segment, the first k columns are returned. With
  k = n and T = 1 this is exact for any input; a positive δ joins columns whose first T entries agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_count, as_float_arrays, as_real, as_scale, require_finite
from refattn.convbasis.basis import ConvBasis, basis_from_starts


@one_blas_thread()
def recover(
    q: ArrayLike,
    k: ArrayLike,
    *,
    n_basis: int,
    probe: int,
    delta: float,
    eps: float = 0.0,
    scale: float | None = None,
    check_finite: bool = True,
) -> ConvBasis:
    """Recover a conv basis of the causal logits ``M ∘ (scale · Q Kᵀ)``.

    Parameters
    ----------
    q, k : array_like, shape (…, n, d)
        Queries and keys; leading axes broadcast and heads are grouped as in `refattn.dense_attention`.
    n_basis : int
        The paper's k: the most segments to look for, 1 ≤ n_basis ≤ n.
    probe : int
        The paper's T: entries of a column that are compared, 1 ≤ probe ≤ n.
    delta : float
        The paper's δ ≥ 0: ℓ1 distance of the probes from which two columns are of different segments.
    eps : float, optional
        The paper's ε ≥ 0: largest entry of the noise. The theorem wants ``eps ≤ delta / (5 probe)``.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    check_finite : bool, optional
        Refuse NaN and infinity.

    Returns
    -------
    ConvBasis
        One basis for every query head: ``starts (…, s)``, ``kernels (…, s, n)`` with ``s ≤ n_basis``; fewer than
        n_basis segments where no more exist. Each kernel is the column of the logits at its start,
        in float64 unless q and k are float32.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong kind or out of range; the message names it.

    Notes
    -----
    A head takes at most k columns, O(knd), and k (⌈log₂ n⌉ + 1) probes, O(Td) each; memory O(kn). If the logits are
    ε-close to a (T, δ)-non-degenerate k-conv matrix, the starts are exact and every kernel entry is within ε of its
    true value plus ε. On other input the result depends on where the search happens to look; with T = 1 and a tiny δ
    it is the first k columns of any generic input. Source: arXiv 2405.05219, Algorithm 2 (Recover).

    Examples
    --------
    >>> import numpy as np
    >>> q = np.ones((6, 1))
    >>> k = np.array([[1.0], [1.0], [1.0], [3.0], [3.0], [3.0]])
    >>> recover(q, k, n_basis=2, probe=2, delta=1.0).starts
    array([0, 3])
    """
    q, k = as_float_arrays(check_finite=check_finite, q=q, k=k)
    layout = HeadLayout.of(q, k, k)
    n = q.shape[-2]
    require_square(q, k)
    n_basis, probe, threshold = search_options(n, n_basis, probe, delta, eps)
    factor = as_scale(scale, q.shape[-1], q.dtype)

    queries, keys, _ = layout.expand(q, k, k)
    basis = recover_heads(queries, keys, n_basis, probe, threshold, factor)
    return ConvBasis(
        basis.starts.reshape(*layout.lead, -1), basis.kernels.reshape(*layout.lead, *basis.kernels.shape[-2:])
    )


def require_square(q: FloatArray, k: FloatArray) -> None:
    """Raise unless there are as many keys as queries."""
    if k.shape[-2] != q.shape[-2]:
        raise ValueError(f"k: {k.shape[-2]} rows came, as many as q has ({q.shape[-2]}) were wanted")


def search_options(n: int, n_basis: Any, probe: Any, delta: Any, eps: Any) -> tuple[int, int, float]:
    """Check Recover's options for n columns; return k, T and the predicate's threshold δ − 2Tε."""
    n_basis = as_count("n_basis", n_basis, least=1, most=n, most_is="n")
    probe = as_count("probe", probe, least=1, most=n, most_is="n")
    threshold = as_real("delta", delta, least=0.0) - 2 * probe * as_real("eps", eps, least=0.0)
    return n_basis, probe, threshold


def recover_heads(
    queries: FloatArray, keys: FloatArray, n_basis: int, probe: int, threshold: float, scale: float
) -> ConvBasis:
    """Recover the basis of every head of checked arrays ``(…, n, d)``; unused places of the stack start at n."""
    *lead, n, _ = queries.shape
    with np.errstate(over="ignore", invalid="ignore"):  # judged entry by entry
        bases = [
            _recover_head(queries[head], keys[head], n_basis, probe, threshold, scale) for head in np.ndindex(*lead)
        ]
    most = max(len(basis.starts) for basis in bases)
    starts: NDArray[np.int64] = np.full((len(bases), most), n, dtype=np.int64)
    kernels = np.zeros((len(bases), most, n), queries.dtype)
    for basis, own, kernel in zip(bases, starts, kernels, strict=True):
        own[: basis.starts.size], kernel[: basis.starts.size] = basis.starts, basis.kernels
    return ConvBasis(starts.reshape(*lead, most), kernels.reshape(*lead, most, n))


def _recover_head(Q: FloatArray, K: FloatArray, k: int, T: int, threshold: float, scale: float) -> ConvBasis:
    """Algorithm 2 for one head; the paper's loop, with `threshold` its δ − 2Tε."""
    n = Q.shape[0]
    t = n - T  # the last column with T rows below it

    def first_entries(j: int) -> FloatArray:
        entries = np.asarray((Q[j : j + T] @ K[j]) * scale)  # (M_j ∘ (Q Kᵀ)_j)[j : j+T], T inner products
        require_finite(f"q, k: logits of column {j}", entries)
        return entries

    starts = [0]
    v = first_entries(0)
    while len(starts) < k and starts[-1] < t:

        def differs(j: int, v: FloatArray = v) -> bool:
            return bool(np.abs(first_entries(j) - v).sum() >= threshold)

        s = search(differs, starts[-1] + 1, t)
        if s is None:
            break
        starts.append(s)
        v = first_entries(s)  # the paper's v + (b_i)[:T] and u + b_i, whose sums telescope to column s itself
    return basis_from_starts(Q, K, starts, scale=scale, check_finite=False)


def search(predicate: Callable[[int], bool], s: int, t: int) -> int | None:
    """Algorithm 3 (Search): the first column in ``s … t`` from which a monotone predicate is true; None if not even t.

    The predicate says whether column j differs from the current segment by δ − 2Tε or more; where it is not monotone,
    some column at which it is true comes back, or None. At most ``⌈log₂(t − s + 1)⌉ + 1`` calls; the last probe is
    ours.

    Examples
    --------
    >>> search(lambda j: j >= 5, 1, 9)
    5
    >>> search(lambda j: False, 1, 9) is None
    True
    """
    while s < t:
        j = (s + t) // 2
        if predicate(j):
            t = j
        else:
            s = j + 1
    return s if predicate(s) else None
