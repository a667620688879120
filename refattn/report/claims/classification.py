"""Claims about classifying film reviews with conv attention and with SparseK in every head.

The records that ship with the package are judged. In the full report one work item of each row is computed anew, if the
texts are there: a record that differs from it breaks the check.

What each party says: later versions of the Conv-Basis paper are said to measure accuracy on IMDB's film reviews against
k with Llama-3-8B, and the SparseK paper measures downstream tasks of its own models; neither text was at hand. The
texts, the models, the prompt, the probe and the bound are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn.experiments.compared import classification
from refattn.experiments.compared.classification import Accuracy, accuracies
from refattn.experiments.experiment import Record
from refattn.experiments.sparsek.perplexity import scorer_digest
from refattn.experiments.sparsek.shipped import shipped_about, shipped_rows
from refattn.laboratory.reviews import DOWNLOAD, reviews_path
from refattn.report.claims.sparsek_model import RecordError
from refattn.report.ledger import Check, Claim, Measurement, NotRunError, claim, fingerprint

NAME = "classification-against-k"
LOST = 0.05
"""How much of the accuracy may be lost (ours): half the width of the interval of a coin's 400 throws."""
CLOSE = 1
"""Answers of a hundred that may differ from the record: rounding decides where both labels are nearly as likely."""
CONV = "arXiv 2405.05219, accuracy on film reviews against k in a later version, not at hand; all else is ours"
SPARSEK = "arXiv 2406.16747, downstream tasks; the task, the model and the bound are ours"


def _found(some: list[Accuracy], model: str, method: str, size: float | None = None) -> Accuracy:
    """Return the one accuracy of an attention, by its share or its pairs."""
    (one,) = (a for a in some if (a.model, a.method, a.pairs or a.share) == (model, method, size))
    return one


def _lost(model: str, method: str, size: float, quick: bool) -> Measurement:
    rows = _rows()
    inputs = "recorded" if quick else "recorded, one item computed anew"
    detail: dict[str, Any] = {}
    if not quick:
        detail["right answers computed anew differ by"] = _recomputed(rows, model, method, size)
    some = accuracies(rows)
    exact, other = _found(some, model, "exact"), _found(some, model, method, size)
    for one in some:
        if one.model == model:
            label = ", ".join([one.method] + [f"{x:g}" for x in (one.share, one.pairs) if x is not None])
            detail[label] = [one.value, one.low, one.high]
    digest = fingerprint([float(row["right"] or 0) for row in rows])
    return Measurement(
        f"{exact.asked} film reviews, n = {exact.n}, {inputs}; {digest}",
        exact.value - other.value,
        at_most=LOST,
        detail={"accuracy, with its 95 % interval": detail, "chance": 0.5},
        recorded=shipped_about(NAME),
    )


def _rows() -> list[Record]:
    """Return the shipped records, none of which may come from another scorer than the one shipped."""
    rows = shipped_rows(NAME)
    for row in rows:
        if row["method"] == "learned" and row["scorer"] != scorer_digest("learned", int(row["pairs"] or 0)):
            raise RecordError(f"records of {NAME}: made with the scorer {row['scorer']}, another one is shipped")
    return rows


def _recomputed(rows: list[Record], model: str, method: str, size: float) -> int:
    """Return by how many right answers an item computed anew differs from its record."""
    if not reviews_path().is_file():
        raise NotRunError(f"needs {reviews_path()}, the archive with the film reviews: {DOWNLOAD}")
    (row,) = (
        row for row in rows
        if (row["model"], row["method"], row["begin"], row["pairs"] or row["share"]) == (model, method, 0, size)
    )  # fmt: skip
    item = {name: row[name] for name in ("texts", "model", "method", "share", "pairs", "begin", "seed")}
    (found,) = classification.run(item)
    difference = abs(int(found["right"] or 0) - int(row["right"] or 0))
    if not difference <= CLOSE:
        raise RecordError(f"{item}: {difference} right answers more or fewer than recorded, {CLOSE} at most was wanted")
    return difference


def _about(ending: str, source: str, model: str, sentence: str, planted: str, covers: str) -> Callable[[Check], Claim]:
    """What every row claims."""
    return claim(f"classification.{ending}", source, sentence,
                 check=f"accuracy of exact attention less that with every head replaced, {model}, 400 sentences",
                 planted=planted, covers=(covers,), must_hold=False)  # fmt: skip


ON_K = "classification accuracy against k"


@_about("conv-decoder", CONV, "SmolLM2-135M with 16 examples in its prompt",
        "A decoder with a quarter of the columns as basis terms (k = n/4) loses at most 5 points of accuracy.",
        "records in which every attention answers as exact attention does: the claim then holds", ON_K)  # fmt: skip
def _decoder(quick: bool) -> Measurement:
    return _lost("decoder", "uniform", 0.25, quick)


@_about("conv-encoder", CONV, "a linear probe of MiniLM-L6's sentence vectors",
        "An encoder with a quarter of the columns as basis terms (k = n/4) loses at most 5 points of accuracy.",
        "records in which every attention answers as exact attention does: the claim then holds", ON_K)  # fmt: skip
def _encoder(quick: bool) -> Measurement:
    return _lost("encoder", "uniform", 0.25, quick)


@_about("sparsek", SPARSEK, "SmolLM2-135M with 16 examples in its prompt",
        "A decoder with SparseK, 256 pairs a query and learned scores, loses at most 5 points of accuracy.",
        "records in which every attention answers as exact attention does: the claim then holds",
        "downstream tasks")  # fmt: skip
def _sparsek(quick: bool) -> Measurement:
    return _lost("decoder", "learned", 256, quick)
