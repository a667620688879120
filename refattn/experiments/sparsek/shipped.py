"""The records of SparseK inside a language model that are shipped, and the tables made of them.

``refattn experiment sparsek-perplexity`` and ``sparsek-passkey`` make them anew; the ledger judges them, the
documentation prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from refattn.experiments.experiment import Record
from refattn.experiments.records import read_records
from refattn.experiments.sparsek.passkey import successes
from refattn.experiments.sparsek.perplexity import gap_ratio, perplexities
from refattn.models.scorer import KINDS

FOLDER = Path(__file__).parents[1] / "data"
NAMES = {
    "exact": "exact",
    "window": "sliding window",
    "window-sinks": "sliding window + 4 sinks",
    "ridge": "SparseK, ridge scores",
    "learned": "SparseK, learned scores",
    "shared": "the same, pairs shared out among layers",
    "long": "SparseK, scores learned on 8,192 tokens",
}
"""What the attentions are called in tables, in their order."""


def shipped_rows(name: str) -> list[Record]:
    """Return the shipped records of an experiment, its items' fields with them.

    Parameters
    ----------
    name : str
        ``"sparsek-perplexity"`` or ``"sparsek-passkey"``.

    Raises
    ------
    OSError, ValueError
        The file is missing or damaged.

    Examples
    --------
    >>> {row["n"] for row in shipped_rows("sparsek-perplexity")} >= {2048}
    True
    """
    return read_records(FOLDER / f"{name}.jsonl").rows()


def perplexity_table(rows: Iterable[Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table: perplexity by length, budget and attention, and gap ratios."""
    rows = list(rows)
    yield "| tokens a window | pairs a query | attention | perplexity | gap / gap of window + sinks |"
    yield "|---|---|---|---|---|"
    order = list(NAMES)
    for found in sorted(perplexities(rows), key=lambda p: (p.n, -p.budget, order.index(p.attention))):
        ratio = ""
        if found.attention in KINDS:
            gap = gap_ratio(rows, n=found.n, budget=found.budget, attention=found.attention)
            ratio = f"{gap.value:.2f} ({gap.low:.2f} … {gap.high:.2f})"
        interval = f"{found.value:.2f} ({found.low:.2f} … {found.high:.2f})"
        yield f"| {found.n:,} | {found.budget:,} | {NAMES[found.attention]} | {interval} | {ratio} |"


def passkey_table(rows: Iterable[Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table: passkeys found, by length and attention."""
    yield "| tokens | pairs a query | attention | found |"
    yield "|---|---|---|---|"
    order = list(NAMES)
    counts = successes(rows)
    for n, attention, budget in sorted(counts, key=lambda key: (key[0], -key[2], order.index(key[1]))):
        done, trials = counts[n, attention, budget]
        yield f"| {n:,} | {budget:,} | {NAMES[attention]} | {done} of {trials} |"
