"""What a report gives a paper, from the command line: tables, figures, a folder; and what is refused before it runs."""

import json
import sys

import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")
pytest.importorskip("matplotlib", reason="needs the extra 'report'")

from typer.testing import CliRunner

import refattn.report.claims
from refattn import cli
from refattn.report import Claim, Measurement

RUNNER = CliRunner()
RUNS = []


def measured(quick):
    RUNS.append(quick)
    return Measurement("none", 0.5, at_most=1.0, detail={f"seconds by FFT at n = {n}": n for n in (2, 4)})


CLAIMS = (
    Claim("conv.product-time", "arXiv 2405.05219, x", "a ≤ b.", "looking", measured),
    Claim("sparsek.x", "arXiv 2406.16747, x", "c.", "looking", measured),
)


@pytest.fixture(autouse=True)
def two_claims(monkeypatch, tmp_path):
    """Replace the ledger by two claims, and work in an empty folder."""
    monkeypatch.setattr(refattn.report.claims, "ALL", CLAIMS)
    monkeypatch.chdir(tmp_path)
    RUNS.clear()


def run(*arguments):
    return RUNNER.invoke(cli.app, ["report", *arguments], env={"COLUMNS": "300"})


@pytest.fixture
def stored(tmp_path):
    """A report's file, whose one claim does not hold."""
    assert run("--quick", "--json", "old.json").exit_code == 0
    RUNS.clear()
    return "old.json"


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


FIGURES = ["product-time.csv", "product-time.pdf"]
FOLDER = [
    "claims.tex",
    "figures/product-time.csv",
    "figures/product-time.pdf",
    "references.bib",
    "report.json",
    "report.tex",
]


def test_one_run_writes_every_form(tmp_path):
    asked = ("--markdown", "t.md", "--latex", "t.tex", "--figures", "drawn", "--template", "study", "--json", "r.json")
    assert run("--quick", *asked).exit_code == 0
    assert "conv.product-time" in (tmp_path / "t.md").read_text(encoding="utf-8")
    assert r"a $\le $ b." in (tmp_path / "t.tex").read_text(encoding="ascii")
    assert names(tmp_path / "drawn") == FIGURES
    assert names(tmp_path / "study") == FOLDER


def test_a_report_that_was_written_is_enough_and_nothing_runs(stored, tmp_path):
    asked = ("--markdown", "t.md", "--html", "r.html", "--figures", "drawn", "--template", "study")
    assert run("--from", stored, *asked).exit_code == 0
    assert not RUNS
    assert names(tmp_path / "study") == FOLDER
    assert json.loads((tmp_path / "study/report.json").read_text()) == json.loads((tmp_path / stored).read_text())


def test_the_status_of_a_report_that_was_written_is_that_of_its_claims(stored, tmp_path):
    document = json.loads((tmp_path / stored).read_text())
    document["failed"] = ["sparsek.x"]
    (tmp_path / "failed.json").write_text(json.dumps(document))
    assert run("--from", "failed.json", "--latex", "t.tex").exit_code == 1


def test_rows_are_chosen_by_paper_id_and_verdict(stored):
    shown = run("--from", stored, "--markdown", "-", "--paper", "SparseK").stdout
    assert "Shown are 1 of the 2: paper 2406.16747." in shown
    assert "conv.product-time" not in shown
    assert "conv.product-time" in run(
        "--from", stored, "--latex", "-", "--only", "conv", "--only", "sparsek"
    ).stdout.replace(r"\allowbreak{}", "")
    assert "Shown are 0 of the 2" in run("--from", stored, "--markdown", "-", "--verdict", "not-run").stdout


def test_a_paper_chooses_what_runs():
    assert run("--quick", "--paper", "conv-basis", "--json", "r.json").exit_code == 0
    assert len(RUNS) == 1


def test_a_report_without_curves_has_an_empty_folder_of_figures(tmp_path):
    result = run("--quick", "--only", "sparsek", "--figures", "drawn")
    assert result.exit_code == 0
    assert "no figure was drawn" in result.stderr
    assert names(tmp_path / "drawn") == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("--paper", "nope"), "'nope' came, one of 2405.05219, 2406.16747 was wanted"),
        (("--only", "conv", "--only", "nope"), "no claim's id contains 'nope'"),
        (("--only", "conv", "--paper", "sparsek"), "no claim of these papers has such an id"),
        (("--markdown", "-", "--verdict", "nope"), "'nope' came, one of holds, holds-if, does-not-hold, not-run"),
        (("--verdict", "holds"), "came without --markdown or --latex"),
        (("--from", "absent.json", "--latex", "t.tex"), "absent.json: No such file"),
        (("--from", "text", "--latex", "t.tex"), "text: no JSON came"),
        (("--from", "folder", "--latex", "t.tex"), "folder: Is a directory"),
        (("--template", "folder"), "folder is not empty"),
        (("--template", "text"), "text is a file, a folder was wanted"),
        (("--figures", "no/such"), "the folder of no/such does not exist"),
        (("--figures", "-"), "a folder was wanted"),
        (("--figures", "new", "--template", "./new"), "is the target of --figures as well"),
        (("--markdown", "t", "--latex", "t"), "as well"),
        (("--schema", "--latex", "t.tex"), "came with another option"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_before_anything_runs(asked, told, tmp_path):
    (tmp_path / "text").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    result = run(*asked)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert not RUNS
    assert names(tmp_path) == ["folder/file", "text"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((), "came without a file to write"),
        (("--quick", "--latex", "t.tex"), "came with --from, which runs nothing"),
        (("--json", "new.json"), "came with --from"),
        (("--only", "conv", "--html", "r.html"), "came without --markdown or --latex"),
        (("--latex", "old.json"), "old.json is what is read as well"),
    ],
)
def test_what_a_written_report_cannot_give_is_refused(stored, asked, told, tmp_path):
    result = run("--from", stored, *asked)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert names(tmp_path) == [stored]


@pytest.mark.parametrize(
    ("option", "module"),
    [("--figures", "matplotlib"), ("--template", "matplotlib"), ("--latex", "jinja2"), ("--html", "jinja2")],
)
def test_a_library_that_is_not_there_is_named_before_anything_runs(option, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    result = run(option, "new")
    assert result.exit_code == 2
    assert f"needs {module}: python -m pip install" in result.output
    assert not RUNS
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_in_the_end_is_told_by_the_status(stored, monkeypatch, tmp_path):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn/product-time.pdf").mkdir()
    result = run("--from", stored, "--figures", "drawn", "--markdown", "t.md")
    assert result.exit_code == 3
    assert "product-time.pdf could not be written: Is a directory" in result.stderr
    assert names(tmp_path) == ["drawn/product-time.csv", stored, "t.md"]
