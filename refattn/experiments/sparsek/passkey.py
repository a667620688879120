"""Passkey retrieval: a number stands somewhere in an essay, and is asked for at the end.

The prompt is text of a held-out essay, with a sentence that names a five-digit number at a relative depth, and a
question whose answer is the number (Mohtashami and Jaggi 2023, arXiv 2305.16300). The number stands far outside every
window. A trial succeeds if greedy decoding writes all five digits. That is read off one forward pass over prompt and
digits: the digits are what greedy decoding writes just if each is the most probable token after those before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from refattn._threads import one_blas_thread
from refattn.experiments.experiment import Experiment, Item, Record
from refattn.experiments.sparsek.perplexity import hidden_with, scorer_digest
from refattn.laboratory.smollm2 import NEEDS_ESSAYS, encoded, essay, model

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


def prompt_and_key(n: int, depth: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return n tokens: filler, needle, filler, question, key; and the key, the number's tokens.

    `FILLER` knows the lengths; a depth of 0 is the beginning, of 1 the end of the filler.
    """
    number = int(np.random.default_rng([seed, n]).integers(10 ** (DIGITS - 1), 10**DIGITS))
    needle, question, key = (encoded(text) for text in (NEEDLE.format(key=number), QUESTION, str(number)))
    filler = essay(FILLER[n])[: n - len(needle) - len(question) - len(key)]
    at = round(depth * len(filler))
    return np.concatenate([filler[:at], needle, filler[at:], question, key]), key


def run(item: Item) -> list[Record]:
    """Return whether greedy decoding writes the number, and how probable it was."""
    attention, budget = item["attention"], item["budget"]
    tokens, key = prompt_and_key(item["n"], item["depth"], item["seed"])
    with one_blas_thread():
        hidden = hidden_with(tokens[:-1], attention, budget)[-len(key) :]
        logits = model().logits(hidden).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(key)), key]
    right = int((logits.argmax(axis=1) == key).sum())
    found: Record = {"success": right == len(key), "digits_right": right, "digits": len(key)}
    return [{**found, "loss": float(loss.mean()), "scorer": scorer_digest(attention, budget)}]


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
