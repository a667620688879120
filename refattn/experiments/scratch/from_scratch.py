"""Sparse and linear attentions trained from scratch to recall, on equal footing: method × seed × rate (ours).

Every method is trained at every rate with the first seed, then at its best one with the other seeds. The second half
has items when the first has told the rates (`chosen.CHOSEN`); the same command goes on with them.

The trial (`quick`) has two methods and a tiny decoder that learns nothing: its records say so and are no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from refattn.experiments.experiment import Experiment, Item, Record
from refattn.experiments.scratch.methods import LENGTHS
from refattn.experiments.scratch.one_training import configuration, items_of, trained_and_tested
from refattn.experiments.scratch.settings import QUICK_N
from refattn.training.batches import Batch

_TEST = 1_000_000
"""Added to the seed of the texts that are tested on."""
_BATCH, _BATCHES = 8, {True: 1, False: 4}
"""Texts of a batch, and batches, in a trial and else."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return the trainings of some lengths: those of the study, or of the trial."""
    return items_of("recall", sizes)


def run(item: Item) -> list[Record]:
    """Train, and measure at every length."""
    from refattn.experiments.scratch.distances import of_queries
    from refattn.training.recall import Recall

    data = {key: value for key, value in configuration(item)["data"].items() if key not in ("kind", "curriculum")}

    def test(times: int) -> Iterator[Batch]:
        task = Recall(times * item["n"], **data)
        for number in range(_BATCHES[item["quick"]]):
            yield task.batch(_BATCH, seed=item["seed"] + _TEST, number=number, held_out=True)

    return trained_and_tested(item, Path(), test, of_queries)


EXPERIMENT = Experiment(
    name="from-scratch",
    question="Trained from scratch at equal pairs a query, what does each attention recall, and at which lengths?",
    sizes=(LENGTHS["recall"],),
    quick_sizes=(QUICK_N,),
    items=items,
    run=run,
    needs=("pydantic", "safetensors"),
)
