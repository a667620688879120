"""The records of SparseK inside a language model that are shipped, and the tables made of them.

``refattn experiment sparsek-perplexity`` and ``sparsek-passkey`` make them anew; the ledger judges them, the
documentation prints them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refattn.experiments.experiment import Record
from refattn.experiments.records import read_records
from refattn.experiments.sparsek.passkey import successes
from refattn.experiments.sparsek.perplexity import gap_ratio, perplexities
from refattn.experiments.sparsek.retrieval import shares
from refattn.experiments.tables import Rows, table

FOLDER = Path(__file__).parents[1] / "data"
NAMES = {
    "exact": "exact",
    "window": "sliding window",
    "window-sinks": "sliding window + 4 sinks",
    "ridge": "SparseK, ridge scores",
    "learned": "SparseK, learned scores",
    "shared": "the same, pairs shared out among layers",
    "long": "SparseK, scores learned on 8,192 tokens",
    "heavy-hitters": "heavy hitters (H2O)",
    "snapkv": "chosen at the end of the prompt (SnapKV)",
    "largest-logits": "each query's largest logits",
}
"""What the attentions are called in tables, in their order."""


def shipped_rows(name: str) -> list[Record]:
    """Return the shipped records of ``"sparsek-perplexity"`` or ``"sparsek-passkey"``, with their items' fields.

    >>> {row["n"] for row in shipped_rows("sparsek-perplexity")} >= {2048}
    True
    """
    return read_records(FOLDER / f"{name}.jsonl").rows()


def shipped_about(name: str) -> dict[str, str]:
    """Return what the shipped records are: ``experiment``, ``begun`` and ``version``.

    >>> sorted(shipped_about("sparsek-passkey"))
    ['begun', 'experiment', 'version']
    """
    header = read_records(FOLDER / f"{name}.jsonl").header
    return {"experiment": name, "begun": str(header["begun"]), "version": str(header["version"])}


def perplexity_table(rows: Rows) -> str:
    """Return a Markdown table: perplexity by length, budget and attention, and gap ratios."""
    order, lines = list(NAMES), list[list[Any]]()
    for found in sorted(perplexities(rows), key=lambda p: (p.n, -p.budget, order.index(p.attention))):
        ratio = ""
        if found.attention not in ("exact", "window", "window-sinks"):
            gap = gap_ratio(rows, n=found.n, budget=found.budget, attention=found.attention)
            ratio = f"{gap.value:.2f} ({gap.low:.2f} … {gap.high:.2f})"
        interval = f"{found.value:.2f} ({found.low:.2f} … {found.high:.2f})"
        lines.append([found.n, found.budget, NAMES[found.attention], interval, ratio])
    header = ["tokens a window", "pairs a query", "attention", "perplexity", "gap / gap of window + sinks"]
    return table(header, lines)


def passkey_table(rows: Rows) -> str:
    """Return a Markdown table: passkeys found, by length and attention."""
    order, counts = list(NAMES), successes(rows)
    keys = sorted(counts, key=lambda key: (key[0], -key[2], order.index(key[1])))
    found = {key: "{} of {}".format(*counts[key]) for key in keys}
    lines = [[n, budget, NAMES[attention], found[n, attention, budget]] for n, attention, budget in keys]
    return table(["tokens", "pairs a query", "attention", "found"], lines)


def opponents_table(rows: Rows) -> str:
    """Return a Markdown table of the opponents' perplexity beside the shipped one's, at the lengths that both have."""
    lengths = {row["n"] for row in rows}
    beside = [row for row in shipped_rows("sparsek-perplexity") if row["n"] in lengths]
    measured = {row["n"] for row in beside}
    compared = ("exact", "window-sinks", "long")
    return perplexity_table(
        [row for row in beside if row["attention"] in compared] + [row for row in rows if row["n"] in measured]
    )


def retrieval_table(rows: Rows) -> str:
    """Return a Markdown table: what was found, and how probable it was, by length, kind, budget and attention."""
    order, lines = list(NAMES), list[list[Any]]()
    for one in sorted(shares(rows), key=lambda f: (f.n, f.kind, -f.budget, order.index(f.attention))):
        right = f"{one.found} of {one.trials} ({one.low:.0%} … {one.high:.0%})"
        probable = f"{one.probability:.2f} ({one.probability_low:.2f} … {one.probability_high:.2f})"
        lines.append([one.n, one.kind, one.budget, NAMES[one.attention], right, probable])
    return table(["tokens", "hidden", "pairs a query", "attention", "found", "mean probability"], lines)
