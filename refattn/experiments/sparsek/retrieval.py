"""Passkeys and facts hidden in a text, fifty of each at every length: what a sparse attention still knows of them.

A passkey is the sentence and the question of `refattn.experiments.sparsek.passkey`; a fact is one of two sentences of
one form, each of which gives a key its word, and one key is asked for:

    The word for the mill is copper. … The word for the harbour is ginger. …      The word for the mill is → copper

The filler is held-out essays, one behind the other, from a random token on. What is asked for stands at fifty depths,
spread evenly from the beginning to the last place that is outside every window; the other fact stands anywhere. No
scorer was fitted on these texts, sentences, keys or words. Compared, at equal pairs a query:

    exact, window-sinks, SparseK with the shipped scorers     as `refattn.experiments.sparsek.perplexity` has them
    heavy-hitters, largest-logits                             as `refattn.experiments.sparsek.opponents` has them
    snapkv    exact attention up to the token before the question's last; from there on the pairs that the last 16
              queries chose, and the new ones (arXiv 2404.14469): every token of the answer comes from what was kept

That seven neighbours share their votes was settled on texts of 1,024 tokens: with five, passkeys lose a digit.
SnapKV has read the question when it chooses, and paid for exact attention; the others drop pairs before it comes.
The pairs of the question's last token and the answer are beyond its budget, the window's sinks beyond its own.

All of it takes about 36 core-hours: 4 at 2,048 tokens, 8 at 4,096 and 24 at 8,192, nearly half of these for the largest
logits; an item at most seven minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_option
from refattn.experiments.compared.classification import wilson
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.experiments.sparsek import passkey
from refattn.experiments.sparsek.hidden import Prompt, Tokens, hidden_in, judged
from refattn.experiments.sparsek.perplexity import hidden_with, scorer_digest
from refattn.laboratory.scorers.texts import HELD_OUT
from refattn.laboratory.smollm2 import NEEDS_ESSAYS, essay, model
from refattn.models import SnapKVAttention
from refattn.models.scorer import BUDGETS

KINDS = ("passkey", "fact")
TRIALS = 50
FACTS = 2
OUTSIDE = 288
"""Tokens at the end of the filler in which nothing that is asked for stands: the largest window, and a sentence."""

FACT, ASKED = " The word for the {key} is {word}.", "\n\nThe word for the {key} is"
KEYS = (
    "lighthouse", "harbour", "windmill", "orchard", "chapel", "tavern", "quarry", "stable", "vineyard", "castle",
    "bridge", "mill", "cellar", "tower", "ferry", "market",
)  # fmt: skip
WORDS = (
    "copper", "velvet", "thunder", "maple", "falcon", "amber", "marble", "cinnamon", "walnut", "ginger", "tiger",
    "lantern", "silver", "pepper", "dolphin", "rabbit",
)  # fmt: skip

WITHOUT_LEARNING = ("window-sinks", "heavy-hitters", "snapkv", "largest-logits")
COMPARED = tuple((name, budget) for budget in BUDGETS for name in (*WITHOUT_LEARNING, "long"))
A_LOOK = tuple((name, budget) for name, budget in COMPARED if budget == min(BUDGETS))
SHORT_ONLY = tuple(("learned", budget) for budget in BUDGETS)
"""The scorers that are no good beyond the 2,048 tokens that they were fitted on."""

_TOKENS_OF_AN_ITEM = 20480


def items(sizes: Sequence[int]) -> list[Item]:
    """Return items of some trials each, fewer of longer ones; below 2,048 tokens `A_LOOK`, one trial of each kind."""
    found: list[Item] = []
    for n in sizes:
        compared = (("exact", n), *(A_LOOK if n < 2048 else COMPARED), *(SHORT_ONLY if n == 2048 else ()))
        trials, step = (TRIALS if n >= 2048 else 1), max(1, _TOKENS_OF_AN_ITEM // n)
        found += [
            {"n": n, "kind": kind, "first": first, "last": min(first + step, trials) - 1, "of": trials,
             "attention": name, "budget": budget}
            for kind in KINDS
            for name, budget in compared
            for first in range(0, trials, step)
        ]  # fmt: skip
    return found


def run(item: Item) -> list[Record]:
    """Return of every trial whether greedy decoding writes the answer, and how probable it was."""
    attention, budget = item["attention"], item["budget"]
    records: list[Record] = []
    for trial in range(item["first"], item["last"] + 1):
        prompt = prompt_of(item["kind"], item["n"], trial, item["of"])
        with one_blas_thread():
            found = judged(_rows(prompt, attention, budget), prompt.answer)
        loss = significant(float(found["loss"] or 0), 5)
        records.append({"trial": trial, **found, "loss": loss, "scorer": scorer_digest(attention, budget)})
    return records


def prompt_of(kind: str, n: int, trial: int, trials: int = TRIALS) -> Prompt:
    """Return one trial of so many: n tokens with the answer at the end."""
    as_option("kind", kind, KINDS)
    rng = np.random.default_rng([KINDS.index(kind), n, trial])
    text = _held_out()
    start = int(rng.integers(len(text) - n))
    filler = text[start : start + n]
    depth = (trial + 0.5) / trials * (1 - OUTSIDE / n)
    if kind == "passkey":
        number = str(rng.integers(10 ** (passkey.DIGITS - 1), 10**passkey.DIGITS))
        return hidden_in(filler, n, [(depth, passkey.NEEDLE.format(key=number))], passkey.QUESTION, number)
    keys, words = rng.choice(KEYS, FACTS, replace=False), rng.choice(WORDS, FACTS, replace=False)
    depths = (depth, *rng.random(FACTS - 1).tolist())
    facts = [FACT.format(key=key, word=word) for key, word in zip(keys, words, strict=True)]
    return hidden_in(filler, n, zip(depths, facts, strict=True), ASKED.format(key=keys[0]), f" {words[0]}")


@cache
def _held_out() -> Tokens:
    return np.concatenate([essay(text) for text in HELD_OUT])


def _rows(prompt: Prompt, attention: str, budget: int) -> FloatArray:
    """Return what the logits of the answer's tokens are made of."""
    tokens, m = prompt.tokens[:-1], len(prompt.answer)
    if attention != "snapkv":
        return hidden_with(tokens, attention, budget)[-m:]
    attend = SnapKVAttention(budget)
    model().hidden(tokens[:-m], attend)
    return model().hidden(tokens[-m:], attend, start=len(tokens) - m)


class Found(NamedTuple):
    """How often answers were found, and how probable they were in the mean, with the ends of 95 % intervals.

    Of what was found they are Wilson's, of the probability those of resampled trials.
    """

    n: int
    kind: str
    attention: str
    budget: int
    found: int
    trials: int
    low: float
    high: float
    probability: float
    probability_low: float
    probability_high: float


def shares(rows: Iterable[Record], *, seed: int = 0, draws: int = 2000) -> list[Found]:
    """Return what was found by length, kind, attention and budget, in the order of the rows.

    >>> trial = {"n": 2048, "kind": "fact", "attention": "exact", "budget": 2048, "loss": 0.0}
    >>> one, = shares([{**trial, "success": True}, {**trial, "success": False}])
    >>> one.found, one.trials, round(one.low, 2), round(one.high, 2), one.probability
    (1, 2, 0.09, 0.91, 1.0)
    """
    by_method: dict[tuple[int, str, str, int], list[Record]] = {}
    for row in rows:
        key = int(row["n"] or 0), str(row["kind"]), str(row["attention"]), int(row["budget"] or 0)
        by_method.setdefault(key, []).append(row)
    found = []
    for key, trials in by_method.items():
        right = sum(bool(row["success"]) for row in trials)
        probable = np.exp([-float(row["loss"] or 0) for row in trials])
        drawn = np.random.default_rng(seed).integers(0, len(trials), (draws, len(trials)))
        ends = np.quantile(probable[drawn].mean(axis=1), (0.025, 0.975)).tolist()
        found.append(Found(*key, right, len(trials), *wilson(right, len(trials)), float(probable.mean()), *ends))
    return found


EXPERIMENT = Experiment(
    name="sparsek-retrieval",
    question="Which passkeys and facts outside the window does a language model find with sparse attention?",
    sizes=(2048, 4096, 8192),
    quick_sizes=(384,),
    items=items,
    run=run,
    needs=NEEDS_ESSAYS,
)
