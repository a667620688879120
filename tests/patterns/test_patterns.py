"""Every pattern attends to what its paper says, query by query, and to nothing later than the query."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn.patterns import (
    fixed_indices,
    hashed_indices,
    random_block_indices,
    routed_indices,
    strided_indices,
)


def vectors(n: int, lead: tuple[int, ...] = (), d: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*lead, n, d))


PATTERNS: dict[str, Any] = {
    "strided": lambda n: strided_indices(n, 5),
    "fixed": lambda n: fixed_indices(n, 5, 2),
    "random blocks": lambda n: random_block_indices(n, 4, n_window=2, n_random=2, n_global=1, heads=3),
    "hashing": lambda n: hashed_indices(vectors(n, (2,)), n_buckets=4, chunk=3, rounds=2),
    "routing": lambda n: routed_indices(vectors(n, (2,)), n_clusters=3, members=4),
}


def sets(indices: np.ndarray) -> list[set[int]]:
    return [set(row) - {-1} for row in indices.tolist()]


@pytest.mark.parametrize("n", [1, 2, 5, 23, 40])
@pytest.mark.parametrize("name", PATTERNS)
def test_lists_are_causal_ascend_and_are_as_long_as_the_longest(name: str, n: int) -> None:
    found = PATTERNS[name](n)
    assert found.shape[-2] == n
    assert found.dtype == np.int64
    assert (found <= np.arange(n)[:, None]).all()
    steps = np.diff(found)
    assert ((steps > 0) | (found[..., 1:] == -1)).all()
    counts = (found >= 0).sum(axis=-1)
    assert counts.max() == found.shape[-1]
    assert counts.min() >= 1


@pytest.mark.parametrize("name", PATTERNS)
def test_a_list_does_not_change_with_what_comes_later(name: str) -> None:
    longer, shorter = PATTERNS[name](40), PATTERNS[name](23)
    if name in ("hashing", "routing"):  # the same vectors, cut
        x = vectors(40, (2,))
        options = {"n_buckets": 4, "chunk": 3, "rounds": 2} if name == "hashing" else {"n_clusters": 3, "members": 4}
        make = hashed_indices if name == "hashing" else routed_indices
        longer, shorter = make(x, **options), make(x[:, :23], **options)
    for head in np.ndindex(*shorter.shape[:-2]):
        assert sets(longer[head][:23]) == sets(shorter[head])


@pytest.mark.parametrize(("n", "stride"), [(23, 5), (25, 5), (4, 9), (9, 1), (10, 3)])
def test_strided_attends_to_the_last_and_to_every_stride_th(n: int, stride: int) -> None:
    found = strided_indices(n, stride)
    for i, one in enumerate(sets(found)):
        assert one == {j for j in range(i + 1) if i - j <= stride or (i - j) % stride == 0}
    if n > stride:
        assert found.shape[1] == stride + (n - 1) // stride


@pytest.mark.parametrize(("n", "block", "summaries"), [(23, 5, 1), (25, 5, 2), (4, 9, 1), (9, 3, 3), (9, 1, 1)])
def test_fixed_attends_to_its_block_and_to_the_ends_of_those_before(n: int, block: int, summaries: int) -> None:
    found = fixed_indices(n, block, summaries)
    for i, one in enumerate(sets(found)):
        assert one == {j for j in range(i + 1) if j // block == i // block or j % block >= block - summaries}
    if n % block == 0:
        assert found.shape[1] == block + summaries * (n // block - 1)


def test_random_blocks_attends_to_whole_blocks_global_near_and_drawn() -> None:
    block, n_window, n_random, n_global, n = 3, 2, 2, 1, 40
    found = random_block_indices(n, block, n_window=n_window, n_random=n_random, n_global=n_global, heads=2, seed=3)
    assert found.shape[-1] == (n_global + n_window + n_random) * block
    for head in found:
        for i, one in enumerate(sets(head)):
            own = i // block
            known = set(range(min(n_global, own + 1))) | set(range(max(own - n_window + 1, 0), own + 1))
            blocks = {j // block for j in one}
            drawn = blocks - known
            assert known <= blocks
            assert len(drawn) == min(n_random, max(own - n_window + 1 - n_global, 0))
            assert one == {j for j in range(i + 1) if j // block in blocks}
            assert (
                drawn == {j // block for j in sets(head)[own * block]} - known
            )  # the whole block of queries drew once
    assert not np.array_equal(*found)


def test_every_block_between_is_drawn_as_often() -> None:
    """Of 6 blocks two are drawn: each in a third of the draws, whichever came before it."""
    found = random_block_indices(9, 1, n_window=1, n_random=2, n_global=2, heads=3000, seed=0)[:, -1]
    counts = np.bincount(found.ravel(), minlength=9)[2:8] / 3000
    np.testing.assert_allclose(counts, 1 / 3, atol=0.035)  # four deviations of such a share


def test_hashing_attends_to_earlier_ones_of_its_bucket_by_chunks() -> None:
    n, chunk, n_buckets = 60, 3, 4
    x = vectors(n)
    turn = np.random.default_rng(7).standard_normal((4, n_buckets // 2))
    found = sets(hashed_indices(x, n_buckets=n_buckets, chunk=chunk, seed=7))
    bucket = [int(np.argmax([*(row @ turn), *(-row @ turn)])) for row in x]
    for i in range(n):
        members = [j for j in range(i + 1) if bucket[j] == bucket[i]]
        own = (len(members) - 1) // chunk
        wanted = {j for rank, j in enumerate(members) if own - 1 <= rank // chunk} - {i}
        assert found[i] == (wanted or {i})
    assert max(map(len, found)) == 2 * chunk - 1


def test_rounds_of_hashing_are_united() -> None:
    x = vectors(50)
    once, twice = (sets(hashed_indices(x, n_buckets=4, chunk=2, rounds=r, seed=1)) for r in (1, 2))
    assert all(a - {i} <= b for i, (a, b) in enumerate(zip(once, twice, strict=True)))
    assert max(map(len, twice)) > 3
    assert all(i not in one or one == {i} for i, one in enumerate(twice))


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_routing_attends_to_the_newest_of_its_cluster(decay: float) -> None:
    n, members = 60, 4
    x = vectors(n)
    centroids = np.random.default_rng(5).standard_normal((3, 4))
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    clusters: list[list[int]] = [[], [], []]
    found = sets(routed_indices(x, n_clusters=3, members=members, decay=decay, seed=5))
    for i in range(n):
        direction = x[i] / np.linalg.norm(x[i])
        best = int(np.argmax(centroids @ direction))
        assert found[i] == (set(clusters[best][-members:]) or {i})
        clusters[best].append(i)
        moved = decay * centroids[best] + (1 - decay) * direction
        centroids[best] = moved / np.linalg.norm(moved)


@pytest.mark.parametrize("make", [hashed_indices, routed_indices], ids=["hashing", "routing"])
@pytest.mark.parametrize("size", [1e-320, 1e300, 0.0])
def test_vectors_of_any_size_are_grouped(make: Any, size: float) -> None:
    options: dict[str, Any] = (
        {"n_buckets": 4, "chunk": 2} if make is hashed_indices else {"n_clusters": 2, "members": 3}
    )
    found = make(size * np.sign(vectors(20)), **options)
    right = make(np.sign(vectors(20)) if size else np.zeros((20, 4)), **options)
    assert np.array_equal(found, right)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strided_indices(0, 1), "n: 0 came"),
        (lambda: strided_indices(4, 0), "stride: 0 came"),
        (lambda: fixed_indices(4, 2, 3), "summaries: 3 came, at least 1 and at most 2"),
        (lambda: random_block_indices(4, 2, n_window=0, n_random=0, n_global=0), "n_window: 0 came"),
        (lambda: random_block_indices(4, 2, n_window=1, n_random=-1, n_global=0), "n_random: -1 came"),
        (lambda: hashed_indices(vectors(4), n_buckets=3, chunk=1), "n_buckets: 3 came, an even number"),
        (lambda: hashed_indices(vectors(4), n_buckets=2, chunk=0), "chunk: 0 came"),
        (lambda: hashed_indices(np.full((3, 2), np.nan), n_buckets=2, chunk=1), "x: nan at index"),
        (lambda: hashed_indices(np.ones(3), n_buckets=2, chunk=1), r"x: shape \(3,\) came"),
        (lambda: routed_indices(vectors(4), n_clusters=1, members=1, decay=0.0), "decay: 0.0 came"),
        (lambda: routed_indices(vectors(4), n_clusters=0, members=1), "n_clusters: 0 came"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
