"""``refattn experiment``: exit statuses, one line for what goes wrong, and how to go on."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

from refattn import cli
from refattn._files import exclusively
from refattn.experiments import catalogue
from refattn.experiments.records import read_records


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.app, ["experiment", *arguments], env={"COLUMNS": "200"})


def test_an_experiment_is_run_and_its_file_named(run, tmp_path):
    result = run("conv-by-fft", "--sizes", "50,60", "--out", "here")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "here/conv-by-fft.jsonl"
    assert read_records(tmp_path / "here" / "conv-by-fft.jsonl").header["sizes"] == [50, 60]


@pytest.mark.slow
def test_quick_has_small_sizes_and_a_folder_of_its_own(run, tmp_path):
    assert run("conv-by-fft", "--quick").stdout.strip() == "records/quick/conv-by-fft.jsonl"
    records = read_records(tmp_path / "records" / "quick" / "conv-by-fft.jsonl")
    assert tuple(records.header["sizes"]) == catalogue.load("conv-by-fft").quick_sizes


def test_the_list_has_every_experiment(run):
    output = run("--list").output
    assert all(name in output for name in catalogue.MODULES)


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such",),
        (),
        ("conv-by-fft", "--sizes", "3,a"),
        ("conv-by-fft", "--sizes", "0"),
        ("conv-by-fft", "--sizes", "3,3"),
        ("conv-by-fft", "--quick", "--sizes", "3"),
        ("conv-by-fft", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"),
        ("conv-by-fft", "--workers", "-1"),
    ],
    ids=lambda arguments: " ".join(arguments) or "no name",
)
def test_wrong_usage_gives_status_2_and_no_file(run, arguments, tmp_path):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_other_records_give_status_1_and_one_line(run):
    assert run("conv-by-fft", "--sizes", "50").exit_code == 0
    result = run("conv-by-fft", "--sizes", "60")
    assert result.exit_code == 1
    assert "sizes [50], not [60]" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_second_writer_gives_status_1(run, tmp_path):
    (tmp_path / "records").mkdir()
    with exclusively(tmp_path / "records" / "conv-by-fft.lock"):
        result = run("conv-by-fft", "--sizes", "50")
    assert result.exit_code == 1
    assert "another process is writing" in result.output


@pytest.mark.slow
def test_ctrl_c_gives_status_130_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-c", "from refattn.cli import main; main()", "experiment", "conv-by-fft"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    path = tmp_path / "conv-by-fft.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err).strip().splitlines()
    assert lines[-1] == "refattn: stopped; finished items are kept, and the same command goes on from there"
    assert "Traceback" not in err
    assert out == ""
    assert read_records(path).results
