"""What SparseK is compared with besides a window: a rule that learns nothing, and the limit of all selections.

    heavy-hitters    the pairs that had most attention so far, half of them, and the newest (H2O, arXiv 2306.14048)
    largest-logits   for every query the pairs with its own largest logits: what is possible if the query is known

at the same pairs a query, on the same windows of the same held-out essays, and in records of the same fields as
`refattn.experiments.sparsek.perplexity`: the rows of both are judged together. Perplexity says nothing of a selection
at the end of a prompt (SnapKV), since a text that is read has none; `refattn.experiments.sparsek.retrieval` has it.

All of it takes about 0.6 core-hours, most of that the largest logits at 8,192 tokens: an item of some three minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from refattn.experiments.experiment import Experiment, Item
from refattn.experiments.sparsek.perplexity import WINDOWS, run
from refattn.laboratory.smollm2 import NEEDS_ESSAYS
from refattn.models.scorer import BUDGETS

COMPARED = tuple((name, budget) for budget in BUDGETS for name in ("heavy-hitters", "largest-logits"))
SHORT = (("useful", 0),)
"""The window of a length that `WINDOWS` does not know: for a trial."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every window of the lengths, attention and budget."""
    return [
        {"n": n, "text": text, "start": start, "attention": name, "budget": budget}
        for n in sizes
        for text, start in WINDOWS.get(n, SHORT)
        for name, budget in COMPARED
    ]


EXPERIMENT = Experiment(
    name="sparsek-opponents",
    question="What do heavy hitters cost a language model, and the pairs that each query would choose itself?",
    sizes=tuple(WINDOWS),
    quick_sizes=(512,),
    items=items,
    run=run,
    needs=NEEDS_ESSAYS,
)
