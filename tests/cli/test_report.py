"""The command line: exit statuses, files, and errors in one line."""

import json

import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

import refattn.report.claims
from refattn import cli
from refattn.report import Claim, Measurement

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture
def one_claim(monkeypatch):
    """Replace the ledger by one claim whose measured number can be chosen."""

    def choose(measured):
        claim = Claim("a.b", "ours", "x ≤ 1.", "looking", lambda quick: Measurement("none", measured, at_most=1.0))
        monkeypatch.setattr(refattn.report.claims, "ALL", (claim,))

    choose(0.5)
    return choose


def test_the_report_prints_rows_counts_and_versions(one_claim):
    result = run("report", "--quick")
    assert result.exit_code == 0, result.output
    assert "x ≤ 1." in result.output
    assert "1 claims: 1 holds, 0 holds if, 0 does not hold, 0 not run." in result.output
    assert f"refattn {refattn.__version__}" in result.output


def test_a_claim_that_must_hold_and_does_not_gives_status_1(one_claim):
    one_claim(2.0)
    result = run("report", "--quick")
    assert result.exit_code == 1
    assert "FAILED a.b: 2, bound ≤ 1" in result.output


def test_json_and_html_hold_the_same_rows(one_claim, tmp_path):
    assert run("report", "--quick", "--json", f"{tmp_path}/r.json", "--html", f"{tmp_path}/r.html").exit_code == 0
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["schema"] == "refattn-report/1"
    assert data["rows"][0]["measured"] == 0.5
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'id="a.b"' in page
    assert "http" not in page.replace("http-equiv", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_the_schema_is_printed_and_nothing_is_run(monkeypatch):
    monkeypatch.setattr(refattn.report.claims, "ALL", ())
    result = run("report", "--schema")
    assert result.exit_code == 0
    assert json.loads(result.output)["$id"] == "refattn-report/1"


def test_the_terminal_says_what_the_papers_have_that_no_row_covers():
    output = run("report", "--quick", "--only", "scorer-files").output
    assert "arXiv 2405.05219: " in output
    assert "items are covered by rows; not covered:\n  figure, drawings of conv matrices" in output


def test_a_missing_folder_is_refused_before_anything_runs(one_claim, tmp_path):
    result = run("report", "--json", f"{tmp_path}/no/such/r.json")
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_runs(one_claim, tmp_path):
    (tmp_path / "r.json").mkdir()
    result = run("report", "--json", f"{tmp_path}/r.json")
    assert result.exit_code == 2
    assert "is a folder" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_only_chooses_by_id_and_refuses_what_matches_nothing(one_claim):
    assert "a.b" in run("report", "--only", "a.").output
    assert run("report", "--only", "nothing-like-this").exit_code == 2


def test_versions_as_json():
    assert json.loads(run("versions", "--json").output)["refattn"] == refattn.__version__
