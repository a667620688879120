"""Claims about decoders trained from scratch with SparseK and with the sparse attention before it.

The records that ship with the package are judged. SparseK's paper (arXiv 2406.16747) says that it outperforms earlier
sparse attention in language models trained with it, and extrapolates to longer texts. Its models have hundreds of
millions of parameters; what is asked here is asked at a size that two cores can train, and is no answer to theirs. The
task, the sizes, the methods' settings and the bound are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refattn.experiments.experiment import Record
from refattn.experiments.records import read_records
from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.methods import EARLIER, LENGTHS
from refattn.experiments.scratch.readings import gain, interval, scores
from refattn.experiments.sparsek.shipped import FOLDER, shipped_about
from refattn.report.ledger import Check, Claim, Measurement, NotRunError, claim, fingerprint

NAME = "from-scratch"
METHOD = "sparsek with a window"
MORE = 0.01
"""Share of the queries that has to be answered more (ours): one of a hundred."""
LONGER = "extrapolation to longer texts"
SOURCE = "arXiv 2406.16747, 'outperforms previous sparse attention methods'; task, scale and bound are ours"


def recorded() -> list[Record]:
    """Return the shipped records, if there are any and they are whole and even."""
    path = Path(FOLDER, f"{NAME}.jsonl")
    if not path.exists():
        raise NotRunError(f"no records of {NAME} are shipped yet: `refattn experiment {NAME}` makes them")
    rows = read_records(path).rows()
    if wrong := uneven(rows):
        raise NotRunError(f"the records of {NAME} are not whole: {'; '.join(wrong)}")
    return rows


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
        recorded=shipped_about(NAME) if Path(FOLDER, f"{NAME}.jsonl").exists() else None,
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
