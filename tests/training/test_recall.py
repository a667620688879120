"""The oracle, which only reads, answers every drawn text, and notices a text that is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from refattn.training import Passkeys, Recall

TASKS = {
    "recall": Recall(n=64, n_pairs=10),
    "recall, as many pairs as fit": Recall(n=32, n_pairs=8, n_keys=8, n_values=1, n_fillers=1),
    "recall, asked for evenly": Recall(n=50, n_pairs=5, power=1.0),
    "passkeys": Passkeys(n=64),
    "passkeys, as short as can be": Passkeys(n=11),
    "one digit": Passkeys(n=3, n_digits=1, n_fillers=1),
}


def score(task, batch):
    """Share of the targets that count which the oracle gives; it has to say nothing anywhere else."""
    answers = task.answers(batch.tokens)
    np.testing.assert_array_equal(answers >= 0, batch.weights > 0)
    counted = batch.weights > 0
    return float((answers[counted] == batch.targets[counted]).mean())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_the_oracle_answers_everything(task):
    batch = task.batch(50, seed=1, number=2)
    assert score(task, batch) == 1.0
    assert batch.weights.sum(axis=1).tolist() == [getattr(task, "n_pairs", None) or task.n_digits] * 50
    assert batch.tokens.min() >= 0
    assert batch.tokens.max() < task.vocab_size
    assert batch.targets.max() < task.vocab_size


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_texts_follow_from_seed_and_number_and_held_out_ones_are_others(task):
    one, again = (task.batch(8, seed=1, number=2) for _ in range(2))
    np.testing.assert_array_equal(one.tokens, again.tokens)
    np.testing.assert_array_equal(one.targets, again.targets)
    if task.n > 11:
        for other in ({"seed": 2}, {"number": 3}, {"held_out": True}):
            assert (task.batch(8, **{"seed": 1, "number": 2, **other}).tokens != one.tokens).any()


def test_a_planted_fault_costs_the_oracle_its_score():
    task = Recall(n=64, n_pairs=10)
    batch = task.batch(20, seed=0, number=0)
    shifted = batch._replace(targets=np.roll(batch.targets, 1, axis=0))
    assert score(task, shifted._replace(weights=batch.weights)) < 1.0
    doubled = batch.tokens.copy()
    row, places = 0, np.flatnonzero((batch.tokens[0] >= 64) & (batch.tokens[0] < 128))
    doubled[row, places[1]] = doubled[row, places[0]]  # a key twice among the pairs
    with pytest.raises(AssertionError):
        score(task, batch._replace(tokens=doubled))


def test_most_keys_are_asked_for_soon_unless_evenly():
    def mean_place(power):
        return float(
            np.nonzero(replace(Recall(n=256, n_pairs=4), power=power).batch(60, seed=0, number=0).weights)[1].mean()
        )

    assert mean_place(0.01) < 165 < 180 < mean_place(1.0) < 205


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recall(n=64, n_pairs=17), "n_pairs: 17 came, at least 1 and at most 16"),
        (lambda: Recall(n=64, n_pairs=10, n_keys=9), "at most 9"),
        (lambda: Recall(n=64, n_pairs=4, power=0.0), "power"),
        (lambda: Passkeys(n=10), "n: 10 came, at least 11"),
        (lambda: Passkeys(n=64, n_digits=0), "n_digits"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
