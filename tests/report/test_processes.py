"""Claims in several processes: the ledger's order, what a lost process costs, and the timed ones last and alone."""

import json
import os
import sys
from pathlib import Path

import pytest

from refattn import _threads
from refattn.report import Claim, Measurement, comparable, processes, run_claims, to_document
from refattn.report.claims import ALL
from refattn.report.processes import run_apart


@pytest.fixture
def seen():
    return []


@pytest.fixture
def apart(monkeypatch, seen):
    """Run claims in two processes that measure `toy_claims`, however few they are."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import toy_claims

    monkeypatch.setattr(processes, "FEWEST", 1)
    monkeypatch.setattr(processes, "_found_by_id", toy_claims.found_by_id)
    _threads.set_thread_count(2)
    yield lambda claims: run_claims(claims, quick=True, seen=seen.append, run=run_apart)
    _threads.set_thread_count(None)
    sys.modules.pop("toy_claims")


def named(name, **options):
    here = Measurement(f"process {os.getpid()}", 2.0, at_most=1.0)
    return Claim(name, "ours", "x.", "looking", lambda quick: here, **options)


@pytest.mark.slow
def test_rows_are_in_the_ledgers_order_and_timed_claims_are_measured_last_and_here(apart, seen):
    claims = [named("first", timed=True), *(named(str(number)) for number in range(6)), named("last", timed=True)]
    rows = apart(claims).rows
    assert [row.claim for row in rows] == claims
    here = f"process {os.getpid()}"
    assert [row.inputs == here for row in rows] == [claim.timed for claim in claims]
    assert [row.id for row in seen[-2:]] == ["first", "last"]
    assert len(seen) == len(claims)


@pytest.mark.slow
def test_a_process_that_is_lost_costs_the_row_of_its_claim(apart):
    names = ["a", "kills", "b", "c", "cannot be sent", "d"]
    rows = {row.id: row for row in apart(map(named, names)).rows}
    assert list(rows) == names
    assert {name for name in names if rows[name].failed} == {"kills", "cannot be sent"}
    assert rows["kills"].reason == "the check broke: its process ended"
    assert rows["cannot be sent"].reason.startswith("the check broke: ")
    assert all(rows[name].verdict == "holds" for name in "abcd")


SUBSET = (
    "dense.definition", "dense.gradients", "conv.", "recover.", "lowrank.features", "sparsek.fast-bits",
    "training.oracle",
)  # fmt: skip


@pytest.mark.long
def test_the_numbers_are_those_of_one_process_after_the_other(monkeypatch):
    claims = [claim for claim in ALL if claim.id.startswith(SUBSET)]
    assert len(claims) > 18
    found = []
    _threads.set_thread_count(2)
    try:
        for fewest in (1, len(claims) + 1):
            monkeypatch.setattr(processes, "FEWEST", fewest)
            document = to_document(run_claims(claims, quick=True, run=run_apart))
            found.append(comparable(json.loads(json.dumps(document, allow_nan=False))))
    finally:
        _threads.set_thread_count(None)
    for one, other in zip(found[0]["rows"], found[1]["rows"], strict=True):
        assert one == other
    assert found[0] == found[1]
