"""Claims about SparseK attention inside SmolLM2-135M, with scores learned by distillation (arXiv 2406.16747).

The records that ship with the package are judged. In the full report one work item of each row is computed anew: a
record that differs from it breaks the check, so a stale record, or one that was tampered with, does not pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from refattn.experiments.experiment import Item, Record
from refattn.experiments.sparsek import passkey as sparsek_passkey
from refattn.experiments.sparsek import perplexity as sparsek_perplexity
from refattn.experiments.sparsek.passkey import successes
from refattn.experiments.sparsek.perplexity import gap_ratio, perplexities, scorer_digest
from refattn.experiments.sparsek.shipped import shipped_about, shipped_rows
from refattn.models.scorer import BUDGETS, KINDS, SHIPPED, load_scorer
from refattn.report.ledger import Check, Claim, Measurement, claim, fingerprint

PAPER = "arXiv 2406.16747"
CLOSE = 2e-3
"""How far a loss may be from its record, in nats: float32 sums in another order, through 30 layers."""
JUDGED_ANEW = {2048: "useful", 8192: "popular"}
"""Text of the item that the full report computes anew, by length."""
_SHORT_TEXTS = "16,384 tokens held out"
_LONG = ("in every layer, at 8,192 tokens", "24,576 tokens held out in windows of 8,192")


class RecordError(ValueError):
    """A record is not what computing it anew gives, or was made with another scorer."""


def _rows(name: str) -> list[Record]:
    """Return the shipped records, none of which may come from another scorer than the one shipped."""
    rows = shipped_rows(name)
    for row in rows:
        attention, budget = str(row["attention"]), int(row["budget"] or 0)
        if attention in KINDS and row["scorer"] != _digest(attention, budget):
            raise RecordError(f"records of {name}: made with the scorer {row['scorer']}, another one is shipped")
    return rows


@functools.cache
def _digest(attention: str, budget: int) -> str | None:
    return scorer_digest(attention, budget)


def _recomputed(rows: list[Record], item: Item, run: Callable[[Item], list[Record]]) -> float:
    """Return the largest difference of a loss from its record, computed anew."""
    recorded = [row["loss"] for row in rows if all(row[key] == value for key, value in item.items())]
    found = [record["loss"] for record in run(item)]
    if len(recorded) != len(found):
        raise RecordError(f"{item}: {len(recorded)} records, computing it gives {len(found)}")
    difference = max(abs(float(a or 0) - float(b or 0)) for a, b in zip(recorded, found, strict=True))
    if not difference <= CLOSE:
        raise RecordError(f"{item}: a loss differs by {difference:.2g} from its record, at most {CLOSE:.2g} was wanted")
    return difference


def _inputs(rows: list[Record], quick: bool) -> str:
    digest = fingerprint([float(row["loss"] or 0) for row in rows])
    return f"SmolLM2-135M, held-out essays, {'recorded' if quick else 'recorded, one item computed anew'}; {digest}"


def _gap(attention: str, budget: int, n: int, quick: bool) -> Measurement:
    rows = _rows("sparsek-perplexity")
    detail: dict[str, object] = {}
    if not quick:
        text = JUDGED_ANEW[n]
        item: Item = {"n": n, "text": text, "start": 0, "attention": attention, "budget": budget}
        detail["loss computed anew differs by"] = _recomputed(rows, item, sparsek_perplexity.run)
    ratio = gap_ratio(rows, n=n, budget=budget, attention=attention)
    detail["95 % interval"] = [ratio.low, ratio.high]
    other = "ridge" if n == 2048 else "learned"
    detail[f"with {other} scores"] = gap_ratio(rows, n=n, budget=budget, attention=other).value
    for found in perplexities(rows):
        if found.n == n and found.budget in (budget, n):
            detail[f"perplexity, {found.attention}"] = found.value
    about = shipped_about("sparsek-perplexity")
    return Measurement(_inputs(rows, quick), ratio.value, at_most=0.5, detail=detail, recorded=about)


def _about_gap(
    budget: int, ending: str = "", how: str = "in every layer", texts: str = _SHORT_TEXTS
) -> Callable[[Check], Claim]:
    """What every row about the gap at a budget claims."""
    return claim(f"sparsek.model-gap-{budget}{ending}", f"{PAPER}, SparseK in a pretrained model; the bound is ours",
                 f"With {budget} pairs a query {how}, learned scores leave at most half of the gap to exact attention"
                 " that a sliding window with 4 sinks leaves.",
                 check=f"gap of perplexity over the window's gap, every head of SmolLM2-135M replaced, {texts}",
                 planted="records of worse learned scores",
                 covers=("pretrained models: perplexity with SparseK",),
       must_hold=False)  # fmt: skip


@_about_gap(256)
def _gap_256(quick: bool) -> Measurement:
    return _gap("learned", 256, 2048, quick)


@_about_gap(128)
def _gap_128(quick: bool) -> Measurement:
    return _gap("learned", 128, 2048, quick)


@_about_gap(128, "-shared", "on average over the layers")
def _gap_128_shared(quick: bool) -> Measurement:
    return _gap("shared", 128, 2048, quick)


@_about_gap(256, "-long", *_LONG)
def _gap_256_long(quick: bool) -> Measurement:
    return _gap("long", 256, 8192, quick)


@_about_gap(128, "-long", *_LONG)
def _gap_128_long(quick: bool) -> Measurement:
    return _gap("long", 128, 8192, quick)


@claim("sparsek.model-learning", "ours",
       "Learning by gradient leaves less of the gap than the ridge regression it starts from, at either budget.",
       check="gap of the learned scores over that of the ridge regression's, the larger of two budgets",
       planted="records of worse learned scores")  # fmt: skip
def _learning(quick: bool) -> Measurement:
    rows = _rows("sparsek-perplexity")
    if not quick:
        item: Item = {"n": 2048, "text": "useful", "start": 0, "attention": "ridge", "budget": 128}
        _recomputed(rows, item, sparsek_perplexity.run)
    shares = {}
    for budget in BUDGETS:
        learned, ridge = (gap_ratio(rows, n=2048, budget=budget, attention=kind).value for kind in ("learned", "ridge"))
        shares[budget] = learned / ridge
    return Measurement(
        _inputs(rows, quick), max(shares.values()), at_most=1.0, detail={f"at {k}": v for k, v in shares.items()},
        recorded=shipped_about("sparsek-perplexity"),
    )  # fmt: skip


@claim("sparsek.model-passkey", f"{PAPER}, retrieval from a long context; the bound is ours",
       "At 4,096 tokens, learned scores find a passkey outside the window in at least half of the trials.",
       check="share of trials in which greedy decoding writes all five digits, 256 pairs a query",
       planted="records of worse learned scores",
       covers=("retrieval from a long context",), must_hold=False)  # fmt: skip
def _passkey(quick: bool) -> Measurement:
    rows = _rows("sparsek-passkey")
    if not quick:
        item: Item = {"n": 2048, "depth": sparsek_passkey.DEPTHS[0], "seed": 0, "attention": "learned", "budget": 256}
        _recomputed(rows, item, sparsek_passkey.run)
    counts = {attention: (done, trials) for (n, attention, _), (done, trials) in successes(rows).items() if n == 4096}
    done, trials = counts["learned"]
    return Measurement(
        _inputs(rows, quick),
        done / trials,
        at_least=0.5,
        detail={attention: f"{done} of {trials}" for attention, (done, trials) in counts.items()},
        recorded=shipped_about("sparsek-passkey"),
    )


@claim("sparsek.scorer-files", "ours", "The shipped scorers take less than 2 MB together.",
       check="megabytes of weights and slopes; every file is the one its manifest is about",
       planted="scorers eight times as large")  # fmt: skip
def _size(quick: bool) -> Measurement:
    scorers = [load_scorer(kind, budget) for kind, budget in SHIPPED]
    size = sum(scorer.weight.nbytes + scorer.slope.nbytes for scorer in scorers)
    seconds = {f"{s.manifest['kind']} {s.budget}": s.manifest.get("cpu_seconds_per_layer") for s in scorers}
    detail = {name: time for name, time in seconds.items() if time is not None}  # a regression is not timed
    tokens = {scorer.manifest["tokens"] for scorer in scorers}
    return Measurement(
        f"{len(scorers)} files; fitted on {min(tokens):,} to {max(tokens):,} tokens",
        size / 1e6,
        at_most=2.0,
        detail=detail,
    )
