"""Passkey retrieval: a number stands somewhere in an essay, and is asked for at the end.

The prompt is text of a held-out essay, with a sentence that names a five-digit number at a relative depth, and a
question whose answer is the number (Mohtashami and Jaggi 2023, arXiv 2305.16300). The number stands far outside every
window. Three trials a length; fifty, with other facts and other attentions, are in
`refattn.experiments.sparsek.retrieval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from refattn._threads import one_blas_thread
from refattn.experiments.experiment import Experiment, Item, Record
from refattn.experiments.sparsek.hidden import Prompt, hidden_in, judged
from refattn.experiments.sparsek.perplexity import hidden_with, scorer_digest
from refattn.laboratory.smollm2 import NEEDS_ESSAYS, essay

FILLER = {2048: "gap", 4096: "popular", 8192: "worked"}
DEPTHS = (0.1, 0.3, 0.5)
DIGITS = 5
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "\n\nWhat is the pass key? The pass key is "
COMPARED = (("exact", 0), ("window-sinks", 256), ("ridge", 256), ("learned", 256), ("long", 256))


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, depth and attention; an exact budget is written as n."""
    return [
        {"n": n, "depth": depth, "seed": seed, "attention": name, "budget": budget or n}
        for n in sizes
        for seed, depth in enumerate(DEPTHS)
        for name, budget in COMPARED
    ]


def prompt_and_key(n: int, depth: float, seed: int) -> Prompt:
    """Return n tokens: filler, needle, filler, question, key; and the key, the number's tokens.

    `FILLER` knows the lengths.
    """
    number = int(np.random.default_rng([seed, n]).integers(10 ** (DIGITS - 1), 10**DIGITS))
    return hidden_in(essay(FILLER[n]), n, [(depth, NEEDLE.format(key=number))], QUESTION, str(number))


def run(item: Item) -> list[Record]:
    """Return whether greedy decoding writes the number, and how probable it was."""
    attention, budget = item["attention"], item["budget"]
    tokens, key = prompt_and_key(item["n"], item["depth"], item["seed"])
    with one_blas_thread():
        found = judged(hidden_with(tokens[:-1], attention, budget)[-len(key) :], key)
    return [
        {
            "success": found["success"],
            "digits_right": found["right"],
            "digits": len(key),
            "loss": float(found["loss"] or 0) / len(key),
            "scorer": scorer_digest(attention, budget),
        }
    ]


def successes(rows: Iterable[Record]) -> dict[tuple[int, str, int], tuple[int, int]]:
    """Return successes and trials by length, attention and budget.

    Examples
    --------
    >>> trial = {"n": 4096, "attention": "exact", "budget": 4096}
    >>> successes([{**trial, "success": True}, {**trial, "success": False}])
    {(4096, 'exact', 4096): (1, 2)}
    """
    found: dict[tuple[int, str, int], tuple[int, int]] = {}
    for row in rows:
        key = int(row["n"] or 0), str(row["attention"]), int(row["budget"] or 0)
        done, trials = found.get(key, (0, 0))
        found[key] = done + bool(row["success"]), trials + 1
    return found


EXPERIMENT = Experiment(
    name="sparsek-passkey",
    question="Does a language model find a number outside the window with SparseK attention?",
    sizes=tuple(FILLER),
    quick_sizes=(2048,),
    items=items,
    run=run,
    needs=NEEDS_ESSAYS,
)
