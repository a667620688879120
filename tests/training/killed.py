"""A training killed with -9 at random moments and resumed ends with the bits of one that was not.

    python tests/training/killed.py FOLDER KILLS STEPS

Trains in FOLDER/undisturbed, and in FOLDER/killed in one child process after the other, each killed after a random
time, until so many were; then to the end. Prints how many were killed in all, before the first checkpoint, and in the
middle of one (they left its unfinished file).
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from refattn.models import Decoder, LlamaConfig
from refattn.training import AdamW, Recall, Trainer, WarmupCosine, read_log, run_training
from refattn.training.run import CHECKPOINT, LOG

TASK = Recall(n=16, n_pairs=2, n_keys=6, n_values=6, n_fillers=6)
CONFIG = LlamaConfig(
    n_layers=2, width=16, ffn_width=32, vocab_size=TASK.vocab_size, n_heads=2, n_kv_heads=1, head_width=8,
    context_length=16, rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


def train(folder, steps):
    """Train to the end, or go on to it."""
    model = Decoder.initial(CONFIG, seed=3)
    trainer = Trainer(
        model,
        lambda step: TASK.batch(4, seed=0, number=step),
        AdamW(model.parameters),
        WarmupCosine(0.01, steps, 3),
        accumulate=2,
    )
    run_training(trainer, steps, folder, about={"steps": steps}, save_every=2)


def killed_once(folder, steps, delay):
    """Train in a child and kill it; return whether it was still training."""
    child = os.fork()
    if child == 0:
        train(folder, steps)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def losses(folder):
    return [
        {key: value for key, value in line.items() if key != "tokens_per_second"} for line in read_log(folder / LOG)
    ]


def main(folder, kills, steps):
    """Compare the two, and print."""
    rng, killed, early, halves = random.Random(0), 0, 0, 0
    while killed < kills:
        there = (folder / "killed" / CHECKPOINT).exists()
        if not killed_once(folder / "killed", steps, rng.uniform(0, 0.04 if there else 0.2)):
            sys.exit(f"the training ended after {killed} kills: give it more steps")
        killed += 1
        early += not (folder / "killed" / CHECKPOINT).exists()
        left = list((folder / "killed").glob(".*.tmp"))
        halves += len(left)
        for path in left:
            path.unlink()
    for name in ("killed", "undisturbed"):
        train(folder / name, steps)
    same = [(folder / name / CHECKPOINT).read_bytes() for name in ("killed", "undisturbed")]
    if same[0] != same[1] or losses(folder / "killed") != losses(folder / "undisturbed"):
        sys.exit("the bits differ")
    print(f"{killed} killed, {early} before the first checkpoint, {halves} while writing one: the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
