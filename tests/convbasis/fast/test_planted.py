"""Planted errors in the fast path: the comparison with the oracle notices every one."""

import numpy as np
import pytest

from refattn import conv_attention
from refattn.convbasis.fast import blocks, blocks_loops, recover
from refattn.convbasis.fast.cost import Plan
from refattn.testing import rope_structured

N, K = 400, 5
PLAN = Plan("block transform", 64)
BELOW = [0, 37, 120, 250, 311]


def worst_row(mask="causal"):
    """Row error of the fast path against the oracle's own Recover, over the tolerance."""
    q, k, v, _ = rope_structured(N, 8, starts=BELOW, seed=1)
    options = {"n_basis": K, "probe": 4, "delta": 1e-3, "mask": mask}
    right = conv_attention(q, k, v, method="oracle", **options)
    with np.errstate(all="ignore"):
        return float(np.abs(conv_attention(q, k, v, plan=PLAN, **options) - right).max() / np.abs(v).max() / 1e-12)


def start_off_by_one(monkeypatch):
    find = recover._find_starts
    monkeypatch.setattr(recover, "_find_starts", lambda *a: find(*a) + np.array([0, 0, 1, 0, 0]))


def kernel_shifted_by_a_row(monkeypatch):
    original = blocks_loops.write_chunks

    def shifted(halves, ratio, first, block, out, norms):
        original(halves, ratio, first, block, out, norms)
        out[...] = np.roll(out, 1, axis=1)

    monkeypatch.setattr(blocks_loops, "write_chunks", shifted)


def pair_dropped(monkeypatch):
    load = blocks.BlockProduct.load

    def dropping(self, x, pieces):
        spectra = load(self, x, pieces)
        spectra.values[:, 2] = 0
        return spectra

    monkeypatch.setattr(blocks.BlockProduct, "load", dropping)


def chunk_scale_dropped(monkeypatch):
    original = blocks_loops.write_chunks
    monkeypatch.setattr(
        blocks_loops, "write_chunks", lambda halves, ratio, *rest: original(halves, np.ones_like(ratio), *rest)
    )


def block_scale_dropped(monkeypatch):
    multiply = blocks.BlockProduct.multiply

    def unscaled(self, *args, **options):
        exponents, noise = multiply(self, *args, **options)
        return np.full_like(exponents, exponents.max()), noise

    monkeypatch.setattr(blocks.BlockProduct, "multiply", unscaled)


def denominator_of_one_segment_dropped(monkeypatch):
    original = blocks_loops.add_window_sums
    monkeypatch.setattr(blocks_loops, "add_window_sums", lambda starts, i, *rest: i == 2 or original(starts, i, *rest))


MUTANTS = [
    start_off_by_one,
    kernel_shifted_by_a_row,
    pair_dropped,
    chunk_scale_dropped,
    block_scale_dropped,
    denominator_of_one_segment_dropped,
]


def conjugate_dropped(monkeypatch):
    original = blocks_loops.multiply
    monkeypatch.setattr(blocks_loops, "multiply", lambda *a: original(*a[:6], a[0].dtype.type(1), *a[7:]))


def diagonal_counted_twice(monkeypatch):
    original = blocks.BlockProduct._exponentiate
    monkeypatch.setattr(blocks.BlockProduct, "_exponentiate", lambda self, i, u, strict: original(self, i, u, False))


def test_without_a_planted_error_nothing_is_found():
    assert worst_row() <= 1
    assert worst_row("full") <= 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_error_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    assert not worst_row() <= 1e3


@pytest.mark.parametrize("mutant", [conjugate_dropped, diagonal_counted_twice], ids=lambda mutant: mutant.__name__)
def test_a_planted_error_above_the_diagonal_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    assert not worst_row("full") <= 1e3
