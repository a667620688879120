"""The ledger's rows about SparseK inside a language model: which records they judge, and which they refuse."""

from __future__ import annotations

import math
import time

import pytest

from refattn.experiments.sparsek import passkey as sparsek_passkey
from refattn.experiments.sparsek import perplexity as sparsek_perplexity
from refattn.report.claims import sparsek_model as claims
from refattn.report.ledger import FAILS, HOLDS, NOT_RUN, Claim, run_each

BY_ID = {claim.id: claim for claim in vars(claims).values() if isinstance(claim, Claim)}
JUDGED = [claim_id for claim_id in BY_ID if claim_id != "sparsek.scorer-files"]


def _row(claim_id, quick=True):
    (row,) = run_each([BY_ID[claim_id]], quick=quick)
    return row


@pytest.mark.parametrize("claim_id", BY_ID)
def test_a_quick_row_judges_the_records_at_once(claim_id):
    begun = time.process_time()
    row = _row(claim_id)
    assert time.process_time() - begun < 0.5
    assert row.verdict in (HOLDS, FAILS)
    assert not row.failed
    assert "recorded" in row.inputs or claim_id == "sparsek.scorer-files"


def _learned_exact(right):
    """Records in which the learned scores lose nothing against exact attention."""

    def perfect(name):
        rows = [dict(row) for row in right(name)]
        if name == "sparsek-passkey":
            return [{**row, "success": row["success"] or row["attention"] == "learned"} for row in rows]

        def place(row):
            return row["n"], row["text"], row["start"], row["block"]

        exact = {place(row): row["loss"] for row in rows if row["attention"] == "exact"}
        learned = ("learned", "shared", "long")
        return [{**row, "loss": exact[place(row)] if row["attention"] in learned else row["loss"]} for row in rows]

    return perfect


@pytest.mark.parametrize("claim_id", JUDGED)
def test_a_row_holds_on_perfect_records(monkeypatch, claim_id):
    """Some rows fail on the records as they are: that they can hold tells the verdict from a constant."""
    monkeypatch.setattr(claims, "shipped_rows", _learned_exact(claims.shipped_rows))
    assert _row(claim_id).verdict == HOLDS


@pytest.mark.parametrize("claim_id", JUDGED)
def test_records_of_another_scorer_break_the_check(monkeypatch, claim_id):
    monkeypatch.setattr(claims, "_digest", lambda attention, budget: "0" * 12)
    row = _row(claim_id)
    assert row.verdict == NOT_RUN
    assert row.failed
    assert "another one is shipped" in row.reason


def _modules_runs(monkeypatch, change):
    """Let both experiments' items 'compute' what is recorded, with a change to the loss."""

    def of(name):
        rows = claims.shipped_rows(name)

        def run(item):
            found = [row for row in rows if all(row[key] == value for key, value in item.items())]
            return [{**row, "loss": change(row["loss"])} for row in found]

        return run

    monkeypatch.setattr(sparsek_perplexity, "run", of("sparsek-perplexity"))
    monkeypatch.setattr(sparsek_passkey, "run", of("sparsek-passkey"))


@pytest.mark.parametrize("claim_id", JUDGED)
def test_the_full_report_computes_an_item_anew_and_a_doctored_record_breaks_the_check(monkeypatch, claim_id):
    _modules_runs(monkeypatch, lambda loss: loss + 5e-4)
    row = _row(claim_id, quick=False)
    assert row.verdict in (HOLDS, FAILS)
    assert "anew" in row.inputs
    for change in (lambda loss: loss + 5e-3, lambda loss: math.nan):
        _modules_runs(monkeypatch, change)
        row = _row(claim_id, quick=False)
        assert row.failed
        assert "differs" in row.reason


def test_a_record_that_is_missing_breaks_the_check(monkeypatch):
    rows = claims.shipped_rows
    _modules_runs(monkeypatch, lambda loss: loss)
    monkeypatch.setattr(claims, "shipped_rows", lambda name: [r for r in rows(name) if r["text"] != "useful"])
    row = _row("sparsek.model-gap-256", quick=False)
    assert row.failed
