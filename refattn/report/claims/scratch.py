"""Claims about decoders trained from scratch: SparseK beside the sparse attention before it, and conv attention.

The records that ship with the package are judged. SparseK's paper (arXiv 2406.16747) says that it outperforms earlier
sparse attention in language models trained with it, and extrapolates to longer texts. Its models have hundreds of
millions of parameters; what is asked here is asked at a size that two cores can train, and is no answer to theirs.
Conv-Basis (arXiv 2405.05219) claims training in almost linear time and trains no model. The tasks, the sizes, the
methods' settings and the bounds are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from refattn.experiments.experiment import Record
from refattn.experiments.records import read_records
from refattn.experiments.scratch.conv_from_scratch import METHODS as CONV_METHODS
from refattn.experiments.scratch.conv_from_scratch import SETTINGS
from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.methods import EARLIER, LENGTHS
from refattn.experiments.scratch.readings import at_best_rates, gain, interval, scores
from refattn.experiments.sparsek.shipped import FOLDER, shipped_about
from refattn.report.ledger import Check, Claim, Measurement, NotRunError, claim, fingerprint

NAME = "from-scratch"
METHOD = "sparsek with a window"
MORE = 0.01
"""Share of the queries that has to be answered more (ours): one of a hundred."""
LONGER = "extrapolation to longer texts"
CONV_NAME, CONV_METHOD = "conv-from-scratch", "spread"
BEHIND = 0.05
"""Nats a token that conv attention may be behind (ours)."""
SOURCE = "arXiv 2406.16747, 'outperforms previous sparse attention methods'; task, scale and bound are ours"


def recorded(name: str = NAME, task: str = "recall", methods: Collection[str] | None = None) -> list[Record]:
    """Return the shipped records of a task, if there are any and they are whole and even."""
    path = Path(FOLDER, f"{name}.jsonl")
    if not path.exists():
        raise NotRunError(f"no records of {name} are shipped yet: `refattn experiment {name}` makes them")
    rows = [row for row in read_records(path).rows() if row["task"] == task]
    if wrong := uneven(rows, methods):
        raise NotRunError(f"the records of {name} are not whole: {'; '.join(wrong)}")
    return rows


def _about_records(name: str) -> dict[str, str] | None:
    return shipped_about(name) if Path(FOLDER, f"{name}.jsonl").exists() else None


def _recall(times: int) -> Measurement:
    rows = recorded()
    found = gain(rows, METHOD, EARLIER, "accuracy", times)
    by_method = {method: interval(list(seeds.values())) for method, seeds in scores(rows, "accuracy", times).items()}
    digest = fingerprint([float(one.value) for one in by_method.values()])
    return Measurement(
        f"{len(by_method)} methods, 3 seeds, texts of {times * LENGTHS['recall']} tokens, recorded; {digest}",
        found.interval.low,
        at_least=MORE,
        detail={
            "best earlier method": found.best,
            "difference, with its 95 % interval": list(found.interval),
            "accuracy, with its 95 % interval": {method: list(one) for method, one in by_method.items()},
        },
        recorded=_about_records(NAME),
    )


def _about(times: int, where: str, covers: str) -> Callable[[Check], Claim]:
    """What every row claims."""
    return claim(
        f"scratch.recall-{times}", SOURCE,
        "In a decoder of 2 layers of width 64, trained on 2.5 million tokens of a recall task, SparseK with a window"
        f" answers more queries than the best earlier sparse attention with as many pairs, {where}.",
        check="lower end of the 95 % interval, over 3 seeds, of the difference in accuracy",
        planted="records in which SparseK with a window answers what the best earlier method does",
        covers=(covers,), must_hold=False,
    )  # fmt: skip


@_about(1, "at the trained length, n = 256", "downstream tasks")
def _trained(quick: bool) -> Measurement:
    return _recall(1)


@_about(2, "at twice the trained length, n = 512", LONGER)
def _twice(quick: bool) -> Measurement:
    return _recall(2)


@_about(4, "at four times the trained length, n = 1,024", LONGER)
def _four_times(quick: bool) -> Measurement:
    return _recall(4)


def _conv(task: str) -> Measurement:
    rows = recorded(CONV_NAME, task, CONV_METHODS[task])
    losses, others = scores(rows, "loss", 1), scores(rows, "other_loss", 1)
    behind = {
        method: interval([own[seed] - losses["exact"][seed] for seed in sorted(own)])
        for method, own in losses.items()
        if method != "exact"
    }
    residuals = {
        method: float(np.median([row["residual"] for row in at_best_rates(rows) if _at_end(row, task, method)]))
        for method in losses
    }
    digest = fingerprint([float(value) for own in losses.values() for value in own.values()])
    return Measurement(
        f"{len(losses)} methods, 3 seeds, texts of {SETTINGS[task].n} tokens, recorded; {digest}",
        behind[CONV_METHOD].high,
        at_most=BEHIND,
        detail={
            "loss less exact attention's, with its 95 % interval": {name: list(one) for name, one in behind.items()},
            "loss, seed by seed": {name: list(own.values()) for name, own in losses.items()},
            "with the other attention in its place": {name: list(own.values()) for name, own in others.items()},
            "distance of the logits from k-conv at the end": residuals,
        },
        recorded=_about_records(CONV_NAME),
    )


def _at_end(row: Record, task: str, method: str) -> bool:
    return row["method"] == method and row.get("step") == SETTINGS[task].steps


def _about_conv(task: str, what: str) -> Callable[[Check], Claim]:
    """What both rows of conv attention claim."""
    return claim(
        f"scratch.conv-{task}",
        "arXiv 2405.05219, training in almost linear time; no model is trained there: task, scale and bound are ours",
        f"Trained with conv attention in every layer (spread starts) a decoder learns {what} as with exact attention.",
        check="upper end of the 95 % interval, over 3 seeds, of its loss less exact attention's, in nats a token",
        planted="records in which conv attention is a tenth of a nat behind",
        covers=("left open: a model trained with conv attention",), must_hold=False,
    )  # fmt: skip


@_about_conv("lags", "a task whose right attention is 4-conv, one layer of width 64, 128 tokens,")
def _conv_lags(quick: bool) -> Measurement:
    return _conv("lags")


@_about_conv("bytes", "Shakespeare byte by byte, two layers of width 64, 16 segments, 256 bytes,")
def _conv_bytes(quick: bool) -> Measurement:
    return _conv("bytes")
