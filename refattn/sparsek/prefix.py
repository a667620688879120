"""SparseK over all prefixes of a score sequence: thresholds, intervals, and a linear-time backward (arXiv 2406.16747).

In a decoder position i needs ``SparseK(z[:i+1], k)``. Another score can only use up budget, so **τ_i never falls**: an
entry goes from one to the *interior* (strictly between zero and one) to zero, and never comes back. Two consequences:

- Two min-heaps follow all n prefixes in O(n log n): entries at one, and entries inside, with the interior's sum. Each
  entry moves at most twice. This is the paper's incremental evaluation.
- Entry j is inside during one contiguous range of positions, so the backward through all n operators is two prefix
  sums (ours): with ``c_i`` the mean of the upstream gradient over the interior at i and C its prefix sums,
  ``dz_j = Σ_i dP_ij − (C[exit_j] − C[soften_j])``.

Positions count from 0, and every range is half open. Ours: k may be real, scores may be −∞ (never selected), and of all
thresholds that serve the smallest is taken, as in `refattn.sparsek.operator`. The proofs are in
``docs/explanation/sparsek.md``.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._overflow import overflow_judged
from refattn._validation import (
    FloatArray,
    as_count,
    as_float_arrays,
    as_option,
    as_real,
    require_finite,
    require_kind,
)
from refattn.sparsek._scores import as_scores
from refattn.sparsek.operator import sparsek_threshold

Thresholds = NDArray[np.float64]
Positions = NDArray[np.int64]

_MOST_LOST = 4096.0
"""Size of prefix sums over that of what is wanted of them, up to which their difference is taken: it costs 12 bits."""


class SupportIntervals(NamedTuple):
    """When every entry is in the support: gate one in ``[enter, soften)``, inside in ``[soften, exit)``, then zero.

    An entry that is never in the support has all three equal to its position; one that stays has ``exit = n``.

    Attributes
    ----------
    enter, soften, exit : ndarray of int64, shape (…, n)
        First prefix whose support holds the entry; at which its gate is below one; at which it is zero again.

    Examples
    --------
    >>> from refattn.sparsek import prefix_thresholds, support_intervals
    >>> z = [1.0, 0.5, 3.0, 0.75]
    >>> enter, soften, exit = support_intervals(z, prefix_thresholds(z, k=2))
    >>> soften.tolist(), exit.tolist()
    ([2, 2, 4, 3], [4, 4, 4, 4])
    """

    enter: Positions
    soften: Positions
    exit: Positions


class SelectionIntervals(NamedTuple):
    """Which queries attend to a pair from outside their window: those in ``[enter, exit)``; empty if equal.

    Attributes
    ----------
    enter, exit : ndarray of int64, shape (…, n)
        First query that selects each pair, and first that does so no more; n where it stays.

    Examples
    --------
    >>> from refattn.sparsek import selection_intervals
    >>> intervals = selection_intervals([1.0, 0.5, 3.0, 0.75], n_select=2, window=1)
    >>> (intervals.exit - intervals.enter).tolist()  # how many queries select each pair
    [3, 1, 1, 0]
    """

    enter: Positions
    exit: Positions


def prefix_thresholds(z: ArrayLike, k: float, *, method: str = "fast") -> Thresholds:
    """Return the SparseK threshold of every prefix of a score sequence.

    Parameters
    ----------
    z : array_like, shape (…, n)
        Scores, finite or −∞ (never selected), in the order of time.
    k : float
        Budget, at least 0, not necessarily an integer.
    method : {"fast", "paper", "oracle"}, optional
        Two heaps compiled; two heaps in Python, next to the paper; each prefix by itself, by sorting.

    Returns
    -------
    ndarray, shape (…, n), float64
        ``tau[…, i] = sparsek_threshold(z[…, :i+1], k)``, non-decreasing in i; −∞ while at most k scores have come.
        Float64 whatever came, because gates are differences of scores and thresholds.

    Raises
    ------
    TypeError
        `z` is not real, `k` not a number.
    ValueError
        A score is NaN or +∞, `k` is negative or not finite, an axis is empty, the method is unknown.

    Notes
    -----
    Time O(n log n) and memory O(n); the oracle takes O(n² log n). τ is accurate to a few units of its own rounding over
    any length: the interior's sum carries its rounding errors along. A gate ``clip(z_j − τ_i, 0, 1)`` is as accurate,
    1e-16 times the threshold; where scores are so large that this matters, `sparsek_operator` of the prefix is better.
    Source: arXiv 2406.16747, its incremental evaluation.

    Examples
    --------
    >>> from refattn.sparsek import prefix_thresholds
    >>> prefix_thresholds([1.0, 0.5, 3.0, 0.25], k=2, method="paper")
    array([-inf, -inf, 0.25, 0.25])
    """
    how = {"fast": thresholds_of_rows, "paper": _two_heaps, "oracle": _each_prefix}[
        as_option("method", method, ("fast", "paper", "oracle"))
    ]
    budget = as_real("k", k, least=0.0)
    scores = np.asarray(as_scores(z, "(…, n)"), np.float64)
    rows = scores.reshape(-1, scores.shape[-1])
    tau = how(rows, budget) if how is thresholds_of_rows else np.stack([how(row, budget) for row in rows])
    return tau.reshape(scores.shape)


def _each_prefix(z: NDArray[np.float64], k: float) -> Thresholds:
    return np.array([sparsek_threshold(z[: i + 1], k) for i in range(z.size)])


def _two_heaps(z: NDArray[np.float64], k: float) -> Thresholds:
    """Follow the threshold through all prefixes with two min-heaps, as the paper does.

    Departures: the interior's sum is kept with its rounding errors (`total`, `lost`), and τ is only ever raised, so
    that it is non-decreasing to the last bit.
    """
    tau = -np.inf
    ones: list[float] = []  # entries with z_j ≥ τ + 1, the first to fall at the top
    interior: list[float] = []  # entries with τ < z_j < τ + 1
    total = lost = 0.0  # their sum
    thresholds = np.empty_like(z)
    for i, new in enumerate(z.tolist()):
        if new > tau:  # otherwise it is at zero, and no other entry is touched
            if new - tau >= 1:
                heapq.heappush(ones, new)
            else:
                heapq.heappush(interior, new)
                total, lost = _add(total, lost, new)
            while interior or len(ones) > k:
                # u entries at one, w − u inside: τ = (Σ z + u − k)/(w − u), if no entry changes sets before
                solved = (total + lost + (len(ones) - k)) / len(interior) if interior else np.inf
                to_zero = interior[0] if interior else np.inf
                from_one = ones[0] - 1 if ones else np.inf
                tau = max(tau, min(solved, to_zero, from_one))
                if to_zero <= solved and to_zero <= from_one:
                    total, lost = _add(total, lost, -heapq.heappop(interior))
                elif from_one < solved:
                    moved = heapq.heappop(ones)
                    heapq.heappush(interior, moved)
                    total, lost = _add(total, lost, moved)
                else:
                    break
        thresholds[i] = tau
    return thresholds


def _add(total: float, lost: float, term: float) -> tuple[float, float]:
    """Add `term` to the sum ``total + lost``, exactly but for the rounding of `lost` (Knuth's two-sum)."""
    raised = total + term
    shadow = raised - total
    return raised, lost + ((total - (raised - shadow)) + (term - shadow))


def thresholds_of_rows(z: NDArray[np.float64], k: float) -> Thresholds:
    """Return `prefix_thresholds` of every row, shape (rows, n); nothing is checked."""
    from refattn._compiled import as_input
    from refattn.sparsek import _prefix_loops

    tau = np.empty(z.shape)
    ones, interior = np.empty((2, z.shape[1]))
    _prefix_loops.thresholds_of_prefixes(as_input(z), k, ones, interior, tau)
    return tau


def support_intervals(z: ArrayLike, tau: ArrayLike) -> SupportIntervals:
    """Return when every entry enters the support, leaves one, and reaches zero.

    Parameters
    ----------
    z : array_like, shape (…, n)
        Scores, finite or −∞.
    tau : array_like, shape (…, n)
        Their thresholds, from `prefix_thresholds`: non-decreasing.

    Returns
    -------
    SupportIntervals
        Three arrays of int64 of z's shape. They say exactly where ``clip(z_j − tau_i, 0, 1)``, as it is rounded, is
        one, inside, and zero.

    Raises
    ------
    TypeError, ValueError
        As `prefix_thresholds`; or `tau` is NaN, falls somewhere, or is not of z's shape.

    Notes
    -----
    Time O(n log n), memory O(n). Source: ours, from the monotonicity the paper states.

    Examples
    --------
    >>> from refattn.sparsek import prefix_thresholds, support_intervals
    >>> z = [1.0, 0.5, 3.0, 0.75]
    >>> intervals = support_intervals(z, prefix_thresholds(z, k=2))
    >>> intervals.soften, intervals.exit
    (array([2, 2, 4, 3]), array([4, 4, 4, 4]))
    """
    scores = np.asarray(as_scores(z, "(…, n)"), np.float64)
    (thresholds,) = as_float_arrays(check_finite=False, tau=tau)
    if thresholds.shape != scores.shape:
        raise ValueError(f"tau: shape {thresholds.shape} came, that of z {scores.shape} was wanted")
    if not (thresholds[..., 1:] >= thresholds[..., :-1]).all():
        raise ValueError("tau: thresholds that fall (or NaN) came, non-decreasing ones were wanted")
    n = scores.shape[-1]
    rows = support_of_rows(scores.reshape(-1, n), thresholds.reshape(-1, n).astype(np.float64, copy=False))
    return SupportIntervals(*(positions.reshape(scores.shape) for positions in rows))


def support_of_rows(z: NDArray[np.float64], tau: Thresholds) -> SupportIntervals:
    """Return `support_intervals` of every row, shape (rows, n); nothing is checked.

    By bisection for all entries: the first positions i ≥ j with ``z_j − τ_i < 1``, and with ``z_j − τ_i ≤ 0``.
    """
    n = z.shape[1]
    enter = np.broadcast_to(np.arange(n), z.shape).copy()
    soften, exits = enter.copy(), enter.copy()
    alive = np.nonzero(z > tau)
    row, own = alive
    for bounds, below_one in ((soften, True), (exits, False)):
        low, high = own.copy(), np.full(own.size, n)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            with np.errstate(over="ignore"):  # an infinite difference is on the side of 1 and 0 that the true one is on
                gate = z[alive] - tau[row, np.minimum(middle, n - 1)]
            below = (gate < 1) if below_one else (gate <= 0)
            high = np.where(open_ & below, middle, high)
            low = np.where(open_ & ~below, middle + 1, low)
        bounds[alive] = low
    return SupportIntervals(enter, soften, exits)


def selection_intervals(z: ArrayLike, n_select: int, window: int = 0, *, method: str = "fast") -> SelectionIntervals:
    """Return which queries select every pair: hard top-k by score among the pairs outside the query's window.

    Query i chooses among the positions ``j ≤ i − window``. Ties go to the earlier position; −∞ is never chosen.

    Parameters
    ----------
    z : array_like, shape (…, n)
        Scores, finite or −∞.
    n_select : int
        Pairs chosen by each query, at least 0; a query with fewer to choose from takes all.
    window : int, optional
        Length of the sliding window, at least 0; 0 makes a query's own pair a candidate.
    method : {"fast", "paper"}, optional
        A heap of the best, compiled or in Python.

    Returns
    -------
    SelectionIntervals
        Two arrays of int64 of z's shape: pair j is selected by the queries ``enter_j ≤ i < exit_j``.

    Raises
    ------
    TypeError, ValueError
        As `prefix_thresholds`; or `n_select` or `window` is not an integer of at least 0.

    Notes
    -----
    Time O(n log n_select), memory O(n). Each interval is contiguous because the order of two scores never changes.
    Source: arXiv 2406.16747, its sliding-window variant.

    Examples
    --------
    >>> from refattn.sparsek import selection_intervals
    >>> enter, exit = selection_intervals([1.0, 0.5, 3.0, 0.75], n_select=2, window=1)
    >>> enter, exit
    (array([1, 2, 3, 4]), array([4, 3, 4, 4]))
    """
    as_option("method", method, ("fast", "paper"))
    scores = np.asarray(as_scores(z, "(…, n)"), np.float64)
    count, lag = as_count("n_select", n_select, least=0), as_count("window", window, least=0)
    intervals = selection_of_rows(scores.reshape(-1, scores.shape[-1]), count, lag, method=method)
    return SelectionIntervals(*(positions.reshape(scores.shape) for positions in intervals))


def selection_of_rows(
    z: NDArray[np.float64], n_select: int, window: int, *, method: str = "fast"
) -> SelectionIntervals:
    """Return `selection_intervals` of every row, shape (rows, n); nothing is checked."""
    n = z.shape[1]
    count, lag = min(n_select, n), min(window, n)
    enter = np.broadcast_to(np.minimum(np.arange(n) + lag, n), z.shape).copy()
    exits, candidates = enter.copy(), z[:, : n - lag]  # the last w pairs are candidates of no query
    if method == "fast":
        leaves = _leaves_compiled(candidates, count)
    else:
        leaves = np.stack([_leaves_the_best(row, count) for row in candidates])
    exits[:, : n - lag] = leaves + lag
    return SelectionIntervals(enter, exits)


def _leaves_the_best(z: NDArray[np.float64], n_select: int) -> Positions:
    """Return the first prefix, from its own on, whose `n_select` best do not include an entry; n if there is none."""
    best: list[tuple[float, int]] = []  # (score, −position): the worst at the top, the later of two equal
    leaves = np.full(z.size, z.size)
    for i, score in enumerate(z.tolist()):
        if score == -np.inf:
            leaves[i] = i
        elif len(best) < n_select:
            heapq.heappush(best, (score, -i))
        else:
            _, worst = heapq.heappushpop(best, (score, -i))
            leaves[-worst] = i
    return leaves


def _leaves_compiled(z: NDArray[np.float64], n_select: int) -> Positions:
    from refattn._compiled import as_input
    from refattn.sparsek import _prefix_loops

    leaves = np.empty(z.shape, np.int64)
    _prefix_loops.exits_from_the_best(as_input(z), n_select, np.empty(n_select, np.int64), leaves)
    return leaves


def prefix_pullback(by_position: ArrayLike, by_entry: ArrayLike, intervals: SupportIntervals) -> FloatArray:
    """Pull a gradient back through the operators of all prefixes, in linear time.

    With ``P_ij = SparseK(z[:i+1], k)_j`` and an upstream gradient dP, ``dz = Σ_i J_iᵀ dP_i``. Only sums of dP over the
    *interior* pairs, ``soften_j ≤ i < exit_j``, are needed.

    Parameters
    ----------
    by_position : array_like, shape (…, n)
        ``Σ_j dP_ij`` over the entries j inside at i.
    by_entry : array_like, shape (…, n)
        ``Σ_i dP_ij`` over the positions i at which j is inside.
    intervals : SupportIntervals
        From `support_intervals`, of the same shape.

    Returns
    -------
    ndarray, shape (…, n), in the dtype of the sums
        Gradient with respect to z.

    Raises
    ------
    TypeError, ValueError
        The sums are not real, not finite, or not of the intervals' shape; or the gradient overflows.

    Notes
    -----
    Time and memory O(n). Source: ours; proved in ``docs/explanation/sparsek.md``.

    Examples
    --------
    The last operator alone, ``dP`` non-zero only at i = 3, where all four entries but the third are inside:

    >>> from refattn.sparsek import prefix_pullback, prefix_thresholds, sparsek_operator, sparsek_vjp, support_intervals
    >>> z, upstream = [1.0, 0.5, 3.0, 0.75], [3.0, 0.0, 7.0, 0.0]
    >>> intervals = support_intervals(z, prefix_thresholds(z, k=2))
    >>> prefix_pullback([0.0, 0.0, 0.0, 3.0], [3.0, 0.0, 0.0, 0.0], intervals)
    array([ 2., -1.,  0., -1.])
    >>> sparsek_vjp(sparsek_operator(z, k=2), upstream).z
    array([ 2., -1.,  0., -1.])
    """
    require_kind("intervals", intervals, SupportIntervals, "support_intervals")
    sums = as_float_arrays(by_position=by_position, by_entry=by_entry)
    rows, columns = (array.astype(np.float64, copy=False) for array in sums)
    for name, array in (("by_position", rows), ("by_entry", columns)):
        if array.shape != intervals.exit.shape:
            raise ValueError(
                f"{name}: shape {array.shape} came, that of the intervals {intervals.exit.shape} was wanted"
            )
    gradient = np.empty(rows.shape)
    with overflow_judged():
        for row in np.ndindex(rows.shape[:-1]):
            of_row = SupportIntervals(*(positions[row] for positions in intervals))
            gradient[row] = pull_back_prefixes(rows[row], columns[row], of_row)
        gradient = gradient.astype(sums[0].dtype, copy=False)
    require_finite("by_position, by_entry: gradient", gradient)
    return gradient


def pull_back_prefixes(by_position: FloatArray, by_entry: FloatArray, intervals: SupportIntervals) -> FloatArray:
    """Return `prefix_pullback` of one sequence, or of every row of an array (rows, n); nothing is checked.

    A difference of prefix sums is rounded like the sums, which may be large from terms before the range: an entry that
    would lose more than 12 bits to them is summed over its own range.
    """
    shape, n = by_position.shape, by_position.shape[-1]
    of_position, soften, exits = (x.reshape(-1, n) for x in (by_position, intervals.soften, intervals.exit))
    of_entry, row = by_entry.reshape(-1, n), np.arange(len(soften))[:, None]
    came, went = (np.bincount((x + row * (n + 1)).ravel(), minlength=len(x) * (n + 1)) for x in (soften, exits))
    inside = np.cumsum((came - went).reshape(-1, n + 1)[:, :n], axis=1)
    mean = np.divide(of_position, inside, out=np.zeros_like(of_position), where=inside > 0)
    nothing = np.zeros((len(mean), 1))
    sums, sizes = (np.concatenate([nothing, np.cumsum(terms, axis=1)], axis=1) for terms in (mean, np.abs(mean)))
    taken = sums[row, exits] - sums[row, soften]
    own = sizes[row, exits] - sizes[row, soften] + np.abs(of_entry)
    lost = (soften < exits) & ~(sizes[row, exits] <= _MOST_LOST * own)
    for i in np.flatnonzero(lost.any(axis=1)):
        taken[i, lost[i]] = _sums_of_ranges(mean[i], soften[i, lost[i]], exits[i, lost[i]])
    return np.asarray((of_entry - taken).reshape(shape))


def _sums_of_ranges(terms: FloatArray, start: Positions, stop: Positions) -> FloatArray:
    """Return ``Σ terms[start : stop]`` for every pair, in O(log n) each: of pairs, of pairs of pairs, and so on."""
    total = np.zeros(start.size, terms.dtype)
    start, stop = start.copy(), stop.copy()
    while (open_ := start < stop).any():
        for place, odd in ((start, open_ & (start % 2 == 1)), (stop - 1, open_ & (stop % 2 == 1))):
            total[odd] += terms[place[odd]]
        start, stop = (start + 1) // 2, stop // 2
        terms = np.append(terms, np.zeros(terms.size % 2, terms.dtype)).reshape(-1, 2).sum(axis=1)
    return total
