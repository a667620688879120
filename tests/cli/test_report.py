"""The command line: exit statuses, files, and errors in one line."""

import json
from pathlib import Path

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
    verdict = "Everything that must hold does. 1 claim: 1 holds."
    lines = result.output.splitlines()
    assert lines[0] == lines[-1] == verdict
    assert lines[2].split() == ["holds", "a.b", "0.5", "≤", "1", "x", "≤", "1."]
    assert f"refattn {refattn.__version__}, sources " in result.output
    assert "looking" not in result.output
    assert "check: looking" in run("report", "--quick", "--verbose").output


def test_a_claim_that_must_hold_and_does_not_gives_status_1(one_claim):
    one_claim(2.0)
    result = run("report", "--quick")
    assert result.exit_code == 1
    assert result.output.startswith("1 that must hold does not, or its check broke.")
    assert "FAILED: does not hold  a.b\n" in result.output
    assert "measured 2, bound ≤ 1" in result.output


def test_json_and_html_hold_the_same_rows(one_claim, tmp_path):
    assert run("report", "--quick", "--json", f"{tmp_path}/r.json", "--html", f"{tmp_path}/r.html").exit_code == 0
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["schema"] == "refattn-report/2"
    assert data["rows"][0]["measured"] == 0.5
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'id="a.b"' in page
    assert "http" not in page.replace("http-equiv", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_files_are_written_before_the_terminal_is_and_announced(one_claim, tmp_path, monkeypatch):
    from refattn.report import terminal

    file = tmp_path / "r.json"
    monkeypatch.setattr(terminal, "_print", lambda *arguments: print(f"there: {file.exists()}"))
    result = run("report", "--quick", "--json", str(file))
    assert "there: False" not in result.output
    assert result.output.splitlines()[-1] == f"written: {file}"


def test_the_report_says_what_ran_it_and_from_which_sources(one_claim, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/refattn", "report", "--quick", "--json", f"{tmp_path}/r.json"])
    assert run("report", "--quick", "--json", f"{tmp_path}/r.json").exit_code == 0
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert data["run"]["command"] == "refattn report --quick --json r.json"
    found = data["environment"]["sources"]
    assert len(found["digest"]) == 12
    assert found["commit"] is None or len(found["commit"]) == 40
    assert found["digest"] in data["citation"]["bibtex"]
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_without_a_terminal_progress_is_a_line_every_few_seconds(capsys, monkeypatch):
    from refattn.cli import _files

    monkeypatch.setattr(_files, "_SECONDS", 0.0)
    with _files.progress_bar() as progress:
        task = progress.add_task("claims", total=3)
        progress.update(task, advance=1, description="a.b")
    captured = capsys.readouterr()
    assert captured.err == "a.b: 1 of 3, 0 s\n"
    assert captured.out == ""


def test_rows_from_records_say_so(tmp_path):
    files = ("--json", f"{tmp_path}/r.json", "--html", f"{tmp_path}/r.html")
    assert run("report", "--quick", "--only", "sparsek.model-gap-256", *files).exit_code == 0
    rows = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["rows"]
    assert {row["recorded"]["experiment"] for row in rows} == {"sparsek-perplexity"}
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f'<span class="badge">recorded {rows[0]["recorded"]["begun"][:10]}, refattn ' in page
    assert f"{len(rows)} rows are read off shipped records" in page


def test_the_schema_is_printed_and_nothing_is_run(monkeypatch):
    monkeypatch.setattr(refattn.report.claims, "ALL", ())
    result = run("report", "--schema")
    assert result.exit_code == 0
    assert json.loads(result.output)["$id"] == "refattn-report/2"


def test_the_terminal_says_what_the_papers_have_that_no_row_covers():
    assert "items are covered by rows; --verbose names" in run("report", "--quick", "--only", "scorer-files").output
    output = run("report", "--quick", "--only", "scorer-files", "--verbose").output
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


def test_a_second_run_is_compared_with_a_first(one_claim, tmp_path):
    first, second = f"{tmp_path}/first.json", f"{tmp_path}/second.json"
    assert run("report", "--quick", "--json", first).exit_code == 0
    same = run("report", "--quick", "--compare", first)
    assert same.exit_code == 0
    assert "no changes since the report compared with" in same.output
    one_claim(0.7)
    moved = run("report", "--quick", "--compare", first, "--json", second)
    assert moved.exit_code == 4
    assert "1 change since the report compared with\n  a.b: measured: holds, 0.5 -> holds, 0.7\n" in moved.output
    one_claim(2.0)
    assert run("report", "--quick", "--compare", first).exit_code == 1
    stored = run("report", "--from", second, "--compare", first)
    assert stored.exit_code == 4
    assert "0.5 -> holds, 0.7" in stored.output


@pytest.mark.parametrize("kind", ["full", "layout", "garbled", "missing", "folder"])
def test_what_cannot_be_compared_with_is_refused_before_anything_runs(one_claim, tmp_path, monkeypatch, kind):
    file = tmp_path / "old.json"
    run("report", *(() if kind == "full" else ("--quick",)), "--json", str(file))
    text = file.read_text(encoding="utf-8")
    file.write_text(
        {"layout": text.replace("refattn-report/2", "refattn-report/1"), "garbled": text[:99]}.get(kind, text)
    )
    if kind in ("missing", "folder"):
        file.unlink()
    if kind == "folder":
        file.mkdir()
    monkeypatch.setattr("refattn.cli.report._run", lambda claims, quick: pytest.fail("it ran"))
    result = run("report", "--quick", "--compare", str(file))
    assert result.exit_code == 2
    assert "--compare" in result.output
    assert "wanted" in result.output or "directory" in result.output


def test_only_the_chosen_rows_are_compared(one_claim, tmp_path, monkeypatch):
    claims = [
        Claim(f"a.{x}", "ours", "x.", "looking", lambda quick: Measurement("none", 1.0, at_most=1.0)) for x in "bc"
    ]
    monkeypatch.setattr(refattn.report.claims, "ALL", tuple(claims))
    run("report", "--quick", "--json", f"{tmp_path}/r.json")
    assert run("report", "--quick", "--only", "a.b", "--compare", f"{tmp_path}/r.json").exit_code == 0


def test_an_old_file_that_could_not_be_replaced_is_not_announced(one_claim, tmp_path, monkeypatch):
    from refattn.cli import _files

    def full(file, content):
        raise OSError(28, "No space left on device")

    (tmp_path / "r.json").write_text("old")
    monkeypatch.setattr(_files, "write_whole", full)
    result = run("report", "--quick", "--json", f"{tmp_path}/r.json")
    assert result.exit_code == 3
    assert "\nwritten: " not in result.output
    assert "could not be written: No space left" in result.output
