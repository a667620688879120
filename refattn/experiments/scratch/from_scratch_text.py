"""The same attentions trained from scratch on text, byte by byte: method × seed × rate (ours, as `from_scratch`).

The texts are Shakespeare's plays and poems in modern spelling, in the public domain. Of the works some are tested on,
some of the others are for validation, and the rest is trained on: no work is on two sides. By distance the records say
how well the ends of capitalised words and numbers are told that came before (`distances.of_repeated`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from refattn.experiments.experiment import Experiment, Item, Record
from refattn.experiments.scratch.methods import LENGTHS
from refattn.experiments.scratch.one_training import items_of, trained_and_tested
from refattn.experiments.scratch.settings import QUICK_N
from refattn.training.batches import Batch

SHARE, SPLIT = 0.1, 1
"""Of all characters, what is tested on, and the seed that says which works."""
_TOKENS = {True: 4 * QUICK_N * 4, False: 32 * LENGTHS["text"]}
"""Tokens that are tested on at every length, in a trial and else."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return the trainings of some lengths: those of the study, or of the trial."""
    return items_of("text", sizes)


def run(item: Item) -> list[Record]:
    """Train, and measure at every length."""
    from refattn.experiments.scratch.distances import of_repeated
    from refattn.training.batches import windows_in_order
    from refattn.training.corpus import packaged_documents, split_documents
    from refattn.training.tokenizer import ByteTokenizer

    rest, tested = split_documents(packaged_documents("shakespeare"), SHARE, SPLIT)
    tokenizer = ByteTokenizer()
    tokens = np.concatenate([np.asarray(tokenizer.encode(document.text), np.int64) for document in tested])

    def test(times: int) -> Iterator[Batch]:
        n, rows = times * item["n"], max(1, 4 // times)
        return windows_in_order(tokens, n, rows, _TOKENS[item["quick"]] // n)

    with tempfile.TemporaryDirectory() as folder:
        for document in rest:
            Path(folder, f"{document.name}.txt").write_text(document.text, encoding="utf-8")
        return trained_and_tested(item, Path(folder), test, of_repeated)


EXPERIMENT = Experiment(
    name="from-scratch-text",
    question="Trained from scratch on text at equal pairs a query, what loss has each attention, and at which lengths?",
    sizes=(LENGTHS["text"],),
    quick_sizes=(QUICK_N,),
    items=items,
    run=run,
    needs=("pydantic", "safetensors", "shksprdata"),
)
