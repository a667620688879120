"""Masked low-rank products as the paper has them (arXiv 2405.05219, section 6): running sums and a segment tree.

Every algorithm multiplies ``W ∘ U1 U2ᵀ`` with a vector v: it keeps a sum c of ``U2_j v_j`` over the columns that a row
sees, and row i of the product is ``U1_i · c_i``. Here v is a matrix V of d columns; where c would not fit for all of
them at once (Algorithm 6), one column at a time. `prefix_sums` is ours, and used by nothing but comparisons: the same
sums as differences of two prefixes.

Transposed products, which gradients need, run the same loops backwards (ours). Algorithm 5 subtracts; its rows are
judged in `refattn.lowrank.guard`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.lowrank.distinct_masks import DistinctColumnsMask, DistinctRowsMask
from refattn.lowrank.masks import CausalStructure, ContinuousRowsMask, RowChangeMask, StructuredMask


def algorithm_4(U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """Causal mask (Algorithm 4): ``c_j = c_{j−1} + U2_j v_j``, ``Y_j = U1_j · c_j``; O(nrd)."""
    Y = np.empty((len(U1), V.shape[1]))
    c = np.zeros((U2.shape[1], V.shape[1]))
    for j in range(len(U1)):
        c += np.outer(U2[j], V[j])
        Y[j] = U1[j] @ c
    return Y


def algorithm_5(mask: RowChangeMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """Row change by amortized constant (Algorithm 5): add what enters, subtract what leaves; O((n + Σ B_i) rd)."""
    Y = np.empty((len(U1), V.shape[1]))
    c = np.zeros((U2.shape[1], V.shape[1]))
    for i in range(mask.n):
        changes = slice(mask.first[i], mask.first[i + 1])
        for j, sign in zip(mask.columns[changes], mask.signs[changes], strict=True):
            c += sign * np.outer(U2[j], V[j])
        Y[i] = U1[i] @ c
    return Y


def algorithm_5_transposed(mask: RowChangeMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """``(Wᵀ ∘ U1 U2ᵀ) V``: Algorithm 5 from the last row to the first (ours).

    A column that enters at row i sees all rows from i on, one that leaves does so no longer.
    """
    Y = np.zeros((len(U1), V.shape[1]))
    c = np.zeros((U2.shape[1], V.shape[1]))
    for i in reversed(range(mask.n)):
        c += np.outer(U2[i], V[i])
        changes = slice(mask.first[i], mask.first[i + 1])
        for j, sign in zip(mask.columns[changes], mask.signs[changes], strict=True):
            Y[j] += sign * (U1[j] @ c)
    return Y


def segment_tree(leaves: FloatArray) -> FloatArray:
    """Build the tree of sums over n leaves, shape (n, r): an array (2m, r), m the power of two from n on.

    Node p has the children 2p and 2p + 1, leaf j is node m + j; node 0 is not used.
    """
    m = 1 << (len(leaves) - 1).bit_length()
    tree = np.zeros((2 * m, leaves.shape[1]))
    tree[m : m + len(leaves)] = leaves
    while m > 1:
        tree[m // 2 : m] = tree[m : 2 * m : 2] + tree[m + 1 : 2 * m : 2]
        m //= 2
    return tree


def segment_sums(tree: FloatArray, start: NDArray[np.int64], stop: NDArray[np.int64]) -> FloatArray:
    """Sums over ``start ≤ j < stop`` for all intervals at once: at most two nodes of each level; O(n r log n)."""
    m = len(tree) // 2
    total = np.zeros((start.size, tree.shape[1]))
    low, high = start + m, stop + m
    while (low < high).any():
        left = np.flatnonzero((low < high) & (low % 2 == 1))  # a right child: its parent begins too early
        total[left] += tree[low[left]]
        right = np.flatnonzero((low < high) & (high % 2 == 1))
        total[right] += tree[high[right] - 1]
        low, high = (low + 1) // 2, high // 2
    return total


def algorithm_6(mask: ContinuousRowsMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """Continuous rows (Algorithm 6): a segment tree over ``U2_j v_j``, one query per row; O(nrd log n)."""
    Y = np.empty((len(U1), V.shape[1]))
    for column, v in enumerate(V.T):
        tree = segment_tree(U2 * v[:, None])
        Y[:, column] = np.einsum("ir,ir->i", U1, segment_sums(tree, mask.start, mask.stop))
    return Y


def prefix_sums(mask: ContinuousRowsMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """Continuous rows by ``c_i = P[stop_i] − P[start_i]``, P the prefix sums of ``U2_j v_j``; O(nrd) (ours).

    Unlike the tree it subtracts: an interval whose sum is small beside its prefix loses digits.
    """
    Y = np.empty((len(U1), V.shape[1]))
    P = np.zeros((len(U2) + 1, U2.shape[1]))
    for column, v in enumerate(V.T):
        np.cumsum(U2 * v[:, None], axis=0, out=P[1:])
        Y[:, column] = np.einsum("ir,ir->i", U1, P[mask.stop] - P[mask.start])
    return Y


def segment_spread(leaves: FloatArray, start: NDArray[np.int64], stop: NDArray[np.int64], n: int) -> FloatArray:
    """Give every leaf to all places of its interval, (n, r): `segment_sums` and `segment_tree` in reverse."""
    m = 1 << (n - 1).bit_length()
    tree = np.zeros((2 * m, leaves.shape[1]))
    low, high = start + m, stop + m
    while (low < high).any():
        left = np.flatnonzero((low < high) & (low % 2 == 1))
        np.add.at(tree, low[left], leaves[left])
        right = np.flatnonzero((low < high) & (high % 2 == 1))
        np.add.at(tree, high[right] - 1, leaves[right])
        low, high = (low + 1) // 2, high // 2
    width = 1
    while width < m:
        parents = tree[width : 2 * width]
        tree[2 * width : 4 * width : 2] += parents
        tree[2 * width + 1 : 4 * width : 2] += parents
        width *= 2
    return tree[m : m + n]


def algorithm_6_transposed(mask: ContinuousRowsMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """``(Wᵀ ∘ U1 U2ᵀ) V``: Algorithm 6 in reverse, each row given to the nodes that its query sums (ours)."""
    Y = np.empty((len(U1), V.shape[1]))
    for column, v in enumerate(V.T):
        spread = segment_spread(U2 * v[:, None], mask.start, mask.stop, mask.n)
        Y[:, column] = np.einsum("ir,ir->i", U1, spread)
    return Y


def distinct_columns(mask: DistinctColumnsMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """At most p distinct columns: one sum for each group of equal ones, seen by the rows of its pattern; O(pnrd)."""
    Y = np.zeros((len(U1), V.shape[1]))
    for group, pattern in enumerate(mask.patterns):
        members = mask.groups == group
        c = U2[members].T @ V[members]
        Y[pattern] += U1[pattern] @ c
    return Y


def distinct_rows(mask: DistinctRowsMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """At most p distinct rows: one sum over the columns of each pattern, for all rows that are equal; O(pnrd)."""
    Y = np.empty((len(U1), V.shape[1]))
    for group, pattern in enumerate(mask.patterns):
        members = mask.groups == group
        c = U2[pattern].T @ V[pattern]
        Y[members] = U1[members] @ c
    return Y


def product(mask: StructuredMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """Return ``(W ∘ U1 U2ᵀ) V`` by the algorithm for the mask."""
    match mask:
        case CausalStructure():
            return algorithm_4(U1, U2, V)
        case RowChangeMask():
            return algorithm_5(mask, U1, U2, V)
        case ContinuousRowsMask():
            return algorithm_6(mask, U1, U2, V)
        case DistinctColumnsMask():
            return distinct_columns(mask, U1, U2, V)
        case DistinctRowsMask():
            return distinct_rows(mask, U1, U2, V)
    raise NotImplementedError(type(mask).__name__)


def product_transposed(mask: StructuredMask, U1: FloatArray, U2: FloatArray, V: FloatArray) -> FloatArray:
    """Return ``(Wᵀ ∘ U1 U2ᵀ) V``: the rows of U1 are columns of W."""
    match mask:
        case CausalStructure():
            return algorithm_4(U1[::-1], U2[::-1], V[::-1])[::-1]
        case RowChangeMask():
            return algorithm_5_transposed(mask, U1, U2, V)
        case ContinuousRowsMask():
            return algorithm_6_transposed(mask, U1, U2, V)
        case DistinctColumnsMask():
            return distinct_rows(mask.transpose(), U1, U2, V)
        case DistinctRowsMask():
            return distinct_columns(mask.transpose(), U1, U2, V)
    raise NotImplementedError(type(mask).__name__)
