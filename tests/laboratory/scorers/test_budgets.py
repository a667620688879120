"""Pairs shared out among layers: the least total loss of all choices that fit, by trying them all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from refattn.laboratory.scorers.budgets import share_out

SIZES = ((16, 16), (32, 32), (16, 48), (64, 64))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean", [32, 48, 64, 100])
def test_it_is_the_best_of_all_choices_that_fit(seed, mean):
    rng = np.random.default_rng(seed)
    losses = [dict(zip(SIZES, rng.random(4), strict=True)) for _ in range(5)]
    found = share_out(losses, mean)
    every = [choice for choice in product(SIZES, repeat=5) if sum(map(sum, choice)) <= 5 * mean]
    least = min(sum(layer[one] for layer, one in zip(losses, choice, strict=True)) for choice in every)
    assert sum(map(sum, found)) <= 5 * mean
    assert sum(layer[one] for layer, one in zip(losses, found, strict=True)) == pytest.approx(least, rel=1e-12)


def test_too_few_pairs_for_the_smallest_choice_are_refused():
    with pytest.raises(ValueError, match="mean"):
        share_out([{(16, 16): 1.0}] * 3, 31)
