"""The training command: one configuration or several, Ctrl-C, and what it refuses, in one line."""

import os
import signal
import subprocess
import sys
import time

import pytest

from refattn.experiments.records import read_records
from refattn.training import read_log

pytest.importorskip("typer", reason="needs the extra 'report'")
pytestmark = pytest.mark.needs("pydantic", "safetensors")

CONFIG = """
steps = {steps}
seed = {seed}
[data]
kind = "recall"
n_pairs = 2
[model]
n_layers = 1
width = 8
n_heads = 2
[batch]
n = 16
rows = 2
[optimizer]
rate = 0.01
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text=CONFIG, **numbers):
        path = tmp_path / f"{name}.toml"
        path.write_text(text.format(**{"steps": 5, "seed": 0, **numbers}))
        return str(path)

    return write


@pytest.fixture
def run(tmp_path):
    from typer.testing import CliRunner

    from refattn.cli import app

    return lambda *arguments: CliRunner().invoke(app, ["train", "--out", str(tmp_path / "out"), *arguments])


def test_a_training_leaves_its_log_and_says_how_it_ended(run, write, tmp_path):
    result = run(write("one"))
    assert result.exit_code == 0, result.output
    assert "5 steps, held-out loss" in result.output
    assert len(read_log(tmp_path / "out" / "one" / "log.jsonl")) == 5
    assert run(write("one")).output == result.output  # nothing left to do


def test_a_list_is_an_experiment_whose_trainings_are_those_of_one_process(run, write, tmp_path):
    files = [write("a"), write("b", seed=1)]
    assert run(files[0]).exit_code == 0
    alone = read_log(tmp_path / "out" / "a" / "log.jsonl")[-1]["held_out_loss"]
    (tmp_path / "out" / "a" / "checkpoint.safetensors").unlink()
    result = run(*files)
    assert result.exit_code == 0, result.output
    rows = read_records(tmp_path / "out" / "trainings.jsonl").rows()
    assert [(row["name"], row["step"]) for row in rows] == [("a", 5), ("b", 5)]
    assert rows[0]["held_out_loss"] == pytest.approx(alone, rel=1e-6)
    assert rows[0]["loss"] != rows[1]["loss"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONFIG.replace("width", "widht"), "model.widht: an unknown key came"),
        (CONFIG.replace("n_pairs = 2", "n_pairs = 9"), "n_pairs: 9 came, at least 1 and at most 4"),
        (CONFIG.replace("rate = 0.01", "rate = 1e30\nclip = 0"), "step "),
    ],
    ids=["unknown key", "pairs that do not fit", "a rate that ends in infinity"],
)
def test_what_goes_wrong_is_one_line_and_status_1(run, write, text, message):
    result = run(write("one", text))
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_names_that_are_the_same_are_wrong_usage(run, write, tmp_path):
    assert run(write("one"), write("one")).exit_code == 2
    assert run(write("one"), "--workers", "1", "--scheduler", "tcp://nowhere:1").exit_code == 2


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_gives_status_130(write, tmp_path):
    command = [sys.executable, "-c", "from refattn.cli import main; main()", "train", write("one", steps=100000)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "one" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "refattn: stopped; what was trained is kept, and the same command goes on from there" in err
    assert "Traceback" not in err
    assert out == ""
    assert (tmp_path / "one" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "one" / "training.lock").exists()
