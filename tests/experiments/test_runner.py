"""A run that is stopped, killed or robbed of a worker gives the records of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from refattn._files import exclusively
from refattn.experiments.records import read_records
from refattn.experiments.runner import OtherRecordsError, run_experiment
from refattn.experiments.workers import ItemFailedError, local_workers

TOY_FILE = Path(__file__).parent / "toy_experiment.py"


def start(folder, where="here", **variables):
    """Start the toy experiment as a process of its own, in a session of its own; wait for its first result."""
    process = subprocess.Popen(
        [sys.executable, str(TOY_FILE), str(folder), where],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(TOY_FILE.parent), **variables},
    )  # fmt: skip
    for line in process.stdout:
        if int(line.split()[0]) >= 2:
            return process
    raise AssertionError(process.communicate()[1])


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def first_count(lines):
    return int(lines.splitlines()[0].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "local"])
def test_kill_9_in_the_middle_and_going_on_give_the_undisturbed_records(where, tmp_path, same_records):
    process = start(tmp_path, where)
    process.kill()
    process.communicate()
    kept = read_records(tmp_path / "toy.jsonl")
    assert 2 <= len(kept.results) < 12
    assert not kept.complete

    again = subprocess.run(
        [sys.executable, str(TOY_FILE), str(tmp_path), where], capture_output=True, text=True, check=True, timeout=600
    )
    assert first_count(again.stdout) == len(kept.results)  # these were not computed again
    assert same_records(tmp_path / "toy.jsonl")
    assert [path.name for path in tmp_path.glob("toy*")] == ["toy.jsonl"]


@pytest.mark.slow
def test_local_workers_do_not_outlive_a_killed_run(tmp_path):
    process = start(tmp_path, "local")
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{pid}/cmdline").exists() and running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "local"])
def test_ctrl_c_keeps_what_is_finished(where, tmp_path, same_records):
    process = start(tmp_path, where)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers as well
    process.communicate(timeout=600)
    assert process.returncode != 0
    assert 2 <= len(read_records(tmp_path / "toy.jsonl").results) < 12
    finish(start(tmp_path, where))
    assert same_records(tmp_path / "toy.jsonl")


@pytest.mark.slow
def test_a_lost_local_worker_changes_nothing(toy, tmp_path, same_records, monkeypatch):
    monkeypatch.setenv("TOY_KILL", str(tmp_path / "killed"))
    path = run_experiment(toy.TOY, tmp_path / "lost", workers=local_workers(2))
    assert (tmp_path / "killed").exists()
    assert same_records(path, environment=False)


@pytest.mark.slow
def test_an_item_that_kills_every_worker_is_given_up_and_the_others_kept(toy, tmp_path):
    deadly = replace(toy.TOY, run=toy.run_and_die)
    with pytest.raises(ItemFailedError, match="'place': 3"):
        run_experiment(deadly, tmp_path, workers=local_workers(2))
    kept = len(read_records(tmp_path / "toy.jsonl").results)
    assert kept >= 2  # what was finished before it began: the item beside it dies with it every time


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, local_workers(2)], ids=["here", "local"])
def test_an_exception_names_the_item_and_loses_no_other(toy, workers, tmp_path, same_records):
    failing = replace(toy.TOY, run=toy.run_and_fail)
    with pytest.raises(ItemFailedError, match=r"'place': 3.*three is no number"):
        run_experiment(failing, tmp_path, workers=workers)
    assert len(read_records(tmp_path / "toy.jsonl").results) >= 2
    assert same_records(run_experiment(toy.TOY, tmp_path), environment=False)


def test_a_half_written_last_line_is_computed_again(toy, tmp_path, same_records):
    path = run_experiment(toy.TOY, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in (1, len(lines[5]) // 2, len(lines[5]) - 1):
        path.write_bytes(b"".join(lines[:5]) + lines[5][:cut])
        assert len(read_records(path).results) == 4
        assert same_records(run_experiment(toy.TOY, tmp_path), environment=False)


def test_results_in_another_order_are_put_in_order(toy, tmp_path, same_records):
    path = run_experiment(toy.TOY, tmp_path)
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + b"".join(reversed(lines)))
    assert same_records(run_experiment(toy.TOY, tmp_path), environment=False)


def test_a_complete_file_is_left_alone(toy, tmp_path):
    path = run_experiment(toy.TOY, tmp_path)
    before = path.stat()
    run_experiment(replace(toy.TOY, run=toy.run_and_die), tmp_path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def change(**fields):
    return lambda header: {**header, **fields}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(sizes=[13]), r"sizes \[13\], not \[12\]"),
        (change(experiment="another"), "experiment another, not toy"),
        (change(version="0.0.1"), "version 0.0.1, not"),
        (change(timed=[]), "timed"),
        (lambda header: {**header, "environment": {**header["environment"], "python": "2.7"}}, "Python 2.7, not"),
    ],
    ids=["sizes", "experiment", "version", "timed", "environment"],
)
def test_other_records_are_refused_and_left_as_they_are(toy, tmp_path, changed, message):
    path = run_experiment(toy.TOY, tmp_path)
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(json.dumps(changed(json.loads(header))) + "\n" + "".join(lines), encoding="utf-8")
    content = path.read_bytes()
    with pytest.raises(OtherRecordsError, match=message):
        run_experiment(toy.TOY, tmp_path)
    assert path.read_bytes() == content


def test_an_experiment_that_got_more_items_goes_on_and_one_that_lost_some_is_refused(toy, tmp_path, same_records):
    def first(count):
        return replace(toy.TOY, items=lambda sizes: toy.items((count,)))

    path = run_experiment(first(5), tmp_path)
    begun = read_records(path)
    assert begun.complete
    run_experiment(first(12), tmp_path)
    grown = read_records(path)
    assert grown.complete
    assert grown.results[:5] == begun.results  # not computed again
    assert same_records(path, environment=False)
    content = path.read_bytes()
    with pytest.raises(OtherRecordsError, match="items 12, not 5"):
        run_experiment(first(5), tmp_path)
    assert path.read_bytes() == content


def test_an_unknown_item_is_refused(toy, tmp_path):
    path = run_experiment(toy.TOY, tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('"place": 4', '"place": 40'), encoding="utf-8")
    with pytest.raises(OtherRecordsError, match="40"):
        run_experiment(toy.TOY, tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"hello\n", b'{"schema": "other/1"}\n'])
def test_a_foreign_file_is_refused_and_left_as_it_is(toy, tmp_path, content):
    (tmp_path / "toy.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.jsonl"):
        run_experiment(toy.TOY, tmp_path)
    assert (tmp_path / "toy.jsonl").read_bytes() == content


@pytest.mark.slow
def test_one_writer_at_a_time(tmp_path, toy, same_records):
    process = start(tmp_path)
    with pytest.raises(BlockingIOError):
        run_experiment(toy.TOY, tmp_path)
    finish(process)
    assert same_records(tmp_path / "toy.jsonl")


def test_a_lock_file_left_behind_locks_nobody_out(tmp_path, toy, same_records):
    (tmp_path / "toy.lock").touch()
    assert same_records(run_experiment(toy.TOY, tmp_path), environment=False)
    with exclusively(tmp_path / "toy.lock"), pytest.raises(BlockingIOError), exclusively(tmp_path / "toy.lock"):
        pass
    assert not (tmp_path / "toy.lock").exists()


def test_records_that_are_not_scalars_are_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="'number': nan came"):
        run_experiment(replace(toy.TOY, run=toy.run_and_give), tmp_path)


def test_equal_items_and_missing_modules_are_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="distinct"):
        run_experiment(replace(toy.TOY, items=lambda sizes: [{"a": 1}, {"a": 1}]), tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_experiment(replace(toy.TOY, needs=("no_such_module",)), tmp_path)
