"""Random masks of every kind, and rows of every kind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    RowChangeMask,
)
from refattn.lowrank.masks import CausalStructure


def random_dense(kind, n, rng):
    """A dense mask of the kind."""
    if kind is CausalStructure:
        return np.tri(n, dtype=bool)
    if kind is RowChangeMask:
        toggles = rng.random((n, n)) < rng.choice([0.5, 2.0, 4.0]) / n
        return np.logical_xor.accumulate(toggles, axis=0)
    if kind is ContinuousRowsMask:
        start, stop = np.sort(rng.integers(0, n + 1, (2, n)), axis=0)
        if rng.random() < 0.5:  # short intervals, as windows have
            stop = np.minimum(stop, start + rng.integers(0, 12, n))
        j = np.arange(n)
        return (start[:, None] <= j) & (j < stop[:, None])
    patterns = rng.random((rng.integers(1, 6), n)) < rng.random()
    dense = patterns[rng.integers(len(patterns), size=n)]
    return dense if kind is DistinctRowsMask else dense.T


KINDS = (CausalStructure, RowChangeMask, ContinuousRowsMask, DistinctColumnsMask, DistinctRowsMask)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def draw():
    return random_dense


@pytest.fixture(scope="session")
def drawn_rows():
    """The module `drawn_rows`, beside this file."""
    spec = importlib.util.spec_from_file_location("drawn_rows", Path(__file__).parent / "drawn_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
