"""An experiment for the tests of the runner, as a module that other processes import, and run by hand.

``python toy_experiment.py FOLDER [here|local|ADDRESS]`` runs it; ``TOY_KILL`` names a file: while it does not exist,
the process that computes item 3 makes it and kills itself.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from refattn.experiments.experiment import Experiment

PAUSE = 0.05


def items(sizes):
    return [{"place": place, "seed": 7} for place in range(sizes[0])]


def run(item):
    once = Path(os.environ["TOY_KILL"]) if "TOY_KILL" in os.environ else None
    if item["place"] == 3 and once is not None and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PAUSE)
    digest = hashlib.sha256(f"{item['seed']} {item['place']}".encode()).digest()
    numbers = [int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4)]
    return [{"which": i, "number": number, "seconds": time.perf_counter()} for i, number in enumerate(numbers)]


def run_and_fail(item):
    if item["place"] == 3:
        raise ValueError("three is no number")
    return run(item)


def run_and_die(item):
    if item["place"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(item)


def run_and_give(item):
    return [{"number": float("nan")}]


TOY = Experiment("toy", "Does it go on?", (12,), (4,), items, run, timed=("seconds",))


def main():
    from refattn.experiments.runner import run_experiment
    from refattn.experiments.workers import dask_workers, local_workers

    folder, where = sys.argv[1], sys.argv[2]
    workers = None if where == "here" else local_workers(2) if where == "local" else dask_workers(where)
    run_experiment(TOY, folder, workers=workers, on_item=lambda done, total: print(done, total, flush=True))


if __name__ == "__main__":
    main()
