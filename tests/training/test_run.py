"""A training that was killed, interrupted or stopped by a NaN goes on from its last checkpoint to the same bits."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lengths import CAMPAIGN

from refattn._files import exclusively
from refattn.training import (
    AdamW,
    OtherCheckpointError,
    TrainingStoppedError,
    read_checkpoint,
    read_log,
    run_training,
    write_checkpoint,
)
from refattn.training.run import CHECKPOINT, LOG

pytestmark = pytest.mark.needs("safetensors")


def test_a_training_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    kills, steps = (50, 1500) if CAMPAIGN else (3, 80)
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(kills), str(steps)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kills} killed")
    assert done.stdout.endswith("the same bits\n")


@pytest.fixture
def whole(new_trainer, tmp_path):
    """Bits and losses of 12 steps that nothing disturbed."""
    trainer = new_trainer(12)
    run_training(trainer, 12, tmp_path / "whole", save_every=5)
    return (tmp_path / "whole" / CHECKPOINT).read_bytes(), losses(tmp_path / "whole")


def losses(folder):
    return [line["loss"] for line in read_log(folder / LOG)]


def test_ctrl_c_finishes_the_step_and_saves_and_the_next_call_ends_with_the_same_bits(new_trainer, tmp_path, whole):
    def interrupt(line):
        if line["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    trainer = new_trainer(12)
    outcome = run_training(trainer, 12, tmp_path / "b", save_every=5, on_step=interrupt)
    assert outcome.interrupted
    assert outcome.steps == trainer.steps == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    outcome = run_training(new_trainer(12), 12, tmp_path / "b", save_every=5)
    assert (outcome.steps, outcome.interrupted) == (12, False)
    assert ((tmp_path / "b" / CHECKPOINT).read_bytes(), losses(tmp_path / "b")) == whole
    assert run_training(new_trainer(12), 12, tmp_path / "b").last["step"] == 12  # nothing left to do


def test_a_second_ctrl_c_does_not_wait(new_trainer, tmp_path):
    def batches(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_training(new_trainer(12, batches=batches), 12, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_steps_after_the_checkpoint_are_taken_off_the_log(new_trainer, tmp_path, whole):
    def fail(line):
        if line["step"] == 8:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        run_training(new_trainer(12), 12, tmp_path / "b", save_every=5, on_step=fail)
    assert len(losses(tmp_path / "b")) == 8
    with open(tmp_path / "b" / LOG, "ab") as file:
        file.write(b'{"step": 9, "lo')
    run_training(new_trainer(12), 12, tmp_path / "b", save_every=5)
    assert ((tmp_path / "b" / CHECKPOINT).read_bytes(), losses(tmp_path / "b")) == whole


def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(new_trainer, tmp_path):
    trainer = new_trainer(12)

    def plant(line):
        if line["step"] == 7:
            trainer.model.parameters["blk.1.attn_k.weight"][0, 0] = np.nan

    with pytest.raises(TrainingStoppedError, match=r"^step 8: blk\.1: k is not finite"):
        run_training(trainer, 12, tmp_path, save_every=5, on_step=plant)
    fresh = new_trainer(12)
    assert read_checkpoint(tmp_path / CHECKPOINT, fresh.model.parameters, fresh.optimizer, {}) == 5
    assert all(np.isfinite(array).all() for array in fresh.model.parameters.values())


def test_parameters_that_are_not_finite_are_never_kept(new_trainer, tmp_path):
    trainer = new_trainer(12)
    step = trainer.optimizer.step

    def plant(parameters, gradients, rate):
        step(parameters, gradients, rate)
        if trainer.steps == 10:
            parameters["blk.0.ffn_up.weight"][0, 0] = np.inf

    trainer.optimizer.step = plant
    with pytest.raises(TrainingStoppedError, match=r"step 10: blk\.0\.ffn_up\.weight: a parameter is not finite"):
        run_training(trainer, 12, tmp_path, save_every=5)
    fresh = new_trainer(12)
    assert read_checkpoint(tmp_path / CHECKPOINT, fresh.model.parameters, fresh.optimizer, {}) == 5


def test_held_out_loss_is_measured_as_often_as_asked_and_changes_nothing(new_trainer, task, tmp_path, whole):
    def held_out():
        return (task.batch(2, seed=0, number=number, held_out=True) for number in range(2))

    run_training(new_trainer(12), 12, tmp_path / "b", save_every=5, held_out=held_out, evaluate_every=5)
    lines = [line for line in read_log(tmp_path / "b" / LOG) if "held_out_loss" in line]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert all(0 <= line["held_out_accuracy"] <= 1 for line in lines)
    assert ((tmp_path / "b" / CHECKPOINT).read_bytes(), losses(tmp_path / "b")) == whole


def test_a_checkpoint_of_some_parameters_goes_on_with_the_same_others_only(new_trainer, tmp_path):
    def of_queries(seed=None):
        trainer = new_trainer(12)
        trainer.optimizer = AdamW({n: array for n, array in trainer.model.parameters.items() if "attn_q" in n})
        if seed is not None:
            trainer.model.parameters["token_embd.weight"][0, 0] += seed
        return trainer

    run_training(of_queries(), 12, tmp_path / "a")
    run_training(of_queries(), 5, tmp_path / "b")
    with pytest.raises(OtherCheckpointError, match="frozen: "):
        run_training(of_queries(seed=1), 12, tmp_path / "b")
    run_training(of_queries(), 12, tmp_path / "b")
    assert (tmp_path / "b" / CHECKPOINT).read_bytes() == (tmp_path / "a" / CHECKPOINT).read_bytes()
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    whole = run_training(new_trainer(12), 1, tmp_path / "c")
    assert whole.steps == 1
    assert (tmp_path / "a" / CHECKPOINT).stat().st_size < (tmp_path / "c" / CHECKPOINT).stat().st_size / 3


def test_one_process_at_a_time(new_trainer, tmp_path):
    with exclusively(tmp_path / "training.lock"), pytest.raises(BlockingIOError):
        run_training(new_trainer(12), 12, tmp_path)


@pytest.fixture
def saved(new_trainer, tmp_path):
    trainer = new_trainer(12)
    trainer.advance()
    path = tmp_path / "one.safetensors"
    write_checkpoint(path, trainer.model.parameters, trainer.optimizer, {"model": {"width": 8}, "seed": 0})
    return path


def refused(trainer, path, about, error, message):
    before = {name: array.copy() for name, array in trainer.model.parameters.items()}
    with pytest.raises(error, match=message):
        read_checkpoint(path, trainer.model.parameters, trainer.optimizer, about)
    assert trainer.steps == 0
    for name, array in trainer.model.parameters.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_checkpoint_of_another_training_is_refused_by_what_differs(new_trainer, saved):
    about = {"model": {"width": 16}, "seed": 0}
    refused(new_trainer(12), saved, about, OtherCheckpointError, r"model\.width: 8 came, 16 was wanted")
    about = {"model": {"width": 8}, "seed": 0}
    trainer = new_trainer(12)
    del trainer.model.parameters["output_norm.weight"]
    refused(trainer, saved, about, OtherCheckpointError, "output_norm.weight came and is not in the model")
    refused(new_trainer(12, np.float32), saved, about, OtherCheckpointError, "float64 came, .*float32 was wanted")


def test_truncated_and_altered_checkpoints_are_refused_by_name(new_trainer, saved):
    whole, trainer, rng = saved.read_bytes(), new_trainer(12), random.Random(0)
    about = {"model": {"width": 8}, "seed": 0}
    for length in [0, 7, 8, 100, *(rng.randrange(len(whole)) for _ in range(20)), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        refused(trainer, saved, about, ValueError, r"one\.safetensors: ")
    for _ in range(50):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        saved.write_bytes(content)
        refused(trainer, saved, about, ValueError, r"one\.safetensors: ")
    saved.write_bytes(whole)
    assert read_checkpoint(saved, trainer.model.parameters, trainer.optimizer, about) == 1


def test_a_safetensors_file_of_something_else_is_no_checkpoint(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"x": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of a training"):
        read_checkpoint(tmp_path / "weights.safetensors", {"x": np.zeros(3)}, AdamW({}), {})


def test_a_log_that_is_none_is_refused_by_its_line(tmp_path):
    path = tmp_path / "log.jsonl"
    for wrong in ("no JSON", "[1]", json.dumps({"loss": 1.0}), '{"step": 2, "loss": NaN}', '{"step": true}'):
        path.write_text(f'{{"step": 1, "loss": 2.0}}\n{wrong}\n')
        with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is not"):
            read_log(path)
