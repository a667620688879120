"""Perplexity of SmolLM2-135M with SparseK attention in every layer, and with what it competes with.

Every one of the 270 heads is replaced: by a sliding window, with and without 4 sinks (the first tokens, kept for ever),
and by SparseK selection with a window, the scores from a ridge regression or learned on 2,048 or on 8,192 tokens
(arXiv 2406.16747; `refattn.laboratory.scorers.finetune`). The text is held out from both. Attention with sinks has its
4 pairs beyond the budget; SparseK counts all its pairs in it.

A record holds the mean loss of a block of 256 tokens; `perplexities` and `gap_ratio` sum them up, with intervals by
resampling blocks (the same blocks for all attentions: what is compared is read on the same text). What a conv basis
costs the same model is the question of `refattn.experiments.conv.perplexity_against_k`; what other rules for so many
pairs cost it, that of `refattn.experiments.sparsek.opponents`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_option
from refattn.experiments.experiment import Experiment, Item, Record
from refattn.laboratory.scorers.texts import HELD_OUT, Window, window_tokens
from refattn.laboratory.smollm2 import NEEDS_ESSAYS, model
from refattn.models import HeavyHitterAttention, SelectiveAttention, TopKAttention, load_scorer, sliding_window
from refattn.models.llama import Attention, Observer
from refattn.models.scorer import BUDGETS, KINDS, SHIPPED

BLOCK = 256
SINKS = 4
COMPARED = tuple((name, k) for k in BUDGETS for name in ("window", "window-sinks")) + SHIPPED
COMPARED_LONG = tuple((name, k) for name, k in COMPARED if name not in ("window", "ridge"))
WINDOWS: Mapping[int, tuple[tuple[str, int], ...]] = {
    2048: (
        ("worked", 0), ("worked", 4096), ("worked", 8192), ("worked", 12288),
        ("popular", 0), ("popular", 4096), ("gap", 2048), ("useful", 0),
    ),
    4096: (("worked", 0), ("popular", 4096)),
    8192: (("worked", 0), ("worked", 8192), ("popular", 0)),
}  # fmt: skip
"""Held-out windows by length: essay and first token; 16,384 tokens of the shortest, 8,192 and 24,576 of the others."""


class Perplexity(NamedTuple):
    """Perplexity of one attention on all windows of a length, and the ends of its 95 % interval."""

    n: int
    attention: str
    budget: int
    tokens: int
    value: float
    low: float
    high: float


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every window of the lengths, attention and budget."""
    found: list[Item] = []
    for n in sizes:
        for text, start in WINDOWS[n]:
            where: Item = {"n": n, "text": text, "start": start}
            found.append({**where, "attention": "exact", "budget": n})
            compared = COMPARED if n == min(WINDOWS) else COMPARED_LONG
            found += [{**where, "attention": name, "budget": k} for name, k in compared]
    return found


def run(item: Item) -> list[Record]:
    """Return the mean loss of every block of a window."""
    n, text, start, attention, budget = (item[name] for name in ("n", "text", "start", "attention", "budget"))
    if text not in HELD_OUT:
        raise ValueError(f"text: {text!r} came, one that is held out was wanted: {', '.join(HELD_OUT)}")
    losses = losses_with(window_tokens(Window(text, start, n)), attention, budget)
    scorer = scorer_digest(attention, budget)
    return [
        {"block": place, "tokens": len(block), "loss": float(block.mean()), "scorer": scorer}
        for place, block in enumerate(losses[at : at + BLOCK] for at in range(0, len(losses), BLOCK))
    ]


def scorer_digest(attention: str, budget: int) -> str | None:
    """Return the first digits of the SHA-256 of the scorer's file an attention reads, None if it reads none."""
    return str(load_scorer(attention, budget).manifest["sha256"])[:12] if attention in KINDS else None


def losses_with(tokens: NDArray[np.int64], attention: str, budget: int) -> NDArray[np.float64]:
    """Return the loss of every token but the first with one of this module's attentions in every layer."""
    attend, observe = _attention(attention, budget)
    with one_blas_thread():
        return model().losses(tokens, attend, observe=observe)


def hidden_with(tokens: NDArray[np.int64], attention: str, budget: int) -> FloatArray:
    """Return what logits are made of with one of this module's attentions in every layer."""
    attend, observe = _attention(attention, budget)
    with one_blas_thread():
        return model().hidden(tokens, attend, observe=observe)


def _attention(name: str, budget: int) -> tuple[Attention | None, Observer | None]:
    if name in KINDS:
        selective = SelectiveAttention(load_scorer(name, budget))
        return selective, selective.observe
    others: dict[str, Callable[[], Attention | None]] = {
        "exact": lambda: None,
        "window": lambda: sliding_window(budget),
        "window-sinks": lambda: sliding_window(budget, SINKS),
        "heavy-hitters": lambda: HeavyHitterAttention(budget - budget // 2, budget // 2),
        "largest-logits": lambda: TopKAttention(budget),
    }
    return others[as_option("attention", name, others)](), None


def perplexities(rows: Iterable[Record], *, seed: int = 0, draws: int = 2000) -> list[Perplexity]:
    """Return the perplexity of every length, attention and budget, with bootstrap intervals over blocks.

    The rows are those of `refattn.experiments.records.Records.rows`; the result is in their order.

    >>> rows = [{"n": 2048, "attention": "exact", "budget": 2048, "text": "a", "start": 0, "block": b, "tokens": 256,
    ...          "loss": 3.0} for b in range(8)]
    >>> perplexities(rows)[0].value.__round__(2), perplexities(rows)[0].tokens
    (20.09, 2048)
    """
    found = []
    for (n, attention, budget), blocks in _blocks(rows).items():
        weight, loss = (np.array(column) for column in zip(*blocks.values(), strict=True))
        drawn = _draws(len(weight), seed, draws)
        means = (weight * loss)[drawn].sum(axis=1) / weight[drawn].sum(axis=1)
        low, high = np.exp(np.quantile(means, (0.025, 0.975)))
        value = np.exp((weight * loss).sum() / weight.sum())
        found.append(Perplexity(n, attention, budget, int(weight.sum()), float(value), float(low), float(high)))
    return found


class GapRatio(NamedTuple):
    """An attention's gap to exact over that of the window with sinks, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def gap_ratio(
    rows: Iterable[Record], *, n: int, budget: int, attention: str = "learned", seed: int = 0, draws: int = 2000
) -> GapRatio:
    """Return how much of the gap of (sliding window + sinks) an attention leaves: differences of perplexity.

    1 is as far from exact as the window with sinks, on windows of n tokens with `budget` pairs a query; 0 is exact.
    Every draw has the same blocks for all three; a ValueError says that they were not measured on the same ones.

    >>> where = {"n": 2048, "text": "a", "start": 0, "tokens": 256}
    >>> losses = {("exact", 2048): 3.0, ("window-sinks", 128): 3.2, ("learned", 128): 3.1}
    >>> rows = [{**where, "attention": name, "budget": k, "block": b, "loss": loss + b / 9}
    ...         for (name, k), loss in losses.items() for b in range(8)]
    >>> round(gap_ratio(rows, n=2048, budget=128).value, 3)
    0.475
    """
    by_attention = _blocks(rows)
    three = [
        by_attention.get(key, {}) for key in ((n, "exact", n), (n, "window-sinks", budget), (n, attention, budget))
    ]
    if not three[0] or any(list(one) != list(three[0]) for one in three):
        raise ValueError(f"rows: exact, window-sinks and {attention} on the same blocks of n = {n} were wanted")
    weight = np.array([tokens for tokens, _ in three[0].values()])
    losses = np.array([[loss for _, loss in one.values()] for one in three])
    drawn = _draws(len(weight), seed, draws)
    exact, sinks, asked = np.exp((weight * losses)[:, drawn].sum(axis=-1) / weight[drawn].sum(axis=-1))
    low, high = np.quantile((asked - exact) / (sinks - exact), (0.025, 0.975))
    exact, sinks, asked = np.exp((weight * losses).sum(axis=-1) / weight.sum())
    return GapRatio(float((asked - exact) / (sinks - exact)), float(low), float(high))


def _blocks(rows: Iterable[Record]) -> dict[tuple[int, str, int], dict[tuple[str, int, int], tuple[int, float]]]:
    """Return tokens and loss by (n, attention, budget) and, within, by (text, start, block) in one order."""
    found: dict[tuple[int, str, int], dict[tuple[str, int, int], tuple[int, float]]] = {}
    for row in rows:
        key = int(row["n"] or 0), str(row["attention"]), int(row["budget"] or 0)
        place = str(row["text"]), int(row["start"] or 0), int(row["block"] or 0)
        found.setdefault(key, {})[place] = int(row["tokens"] or 0), float(row["loss"] or 0)
    return {key: dict(sorted(blocks.items())) for key, blocks in found.items()}


def _draws(n: int, seed: int, draws: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, n, (draws, n))


EXPERIMENT = Experiment(
    name="sparsek-perplexity",
    question="What does SparseK attention with learned scores cost a language model, and sliding windows?",
    sizes=tuple(WINDOWS),
    quick_sizes=(2048,),
    items=items,
    run=run,
    needs=NEEDS_ESSAYS,
)
