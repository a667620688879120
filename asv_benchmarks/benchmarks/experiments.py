"""Experiments on a Dask cluster: what a second single-threaded worker gives.

``python asv_benchmarks/benchmarks/experiments.py`` prints the seconds and the quotient, which needs two idle cores; the
load average before and after stands beside them.
"""

import os
import tempfile
import time

from refattn.experiments.catalogue import load
from refattn.experiments.runner import run_experiment
from refattn.experiments.workers import dask_workers

SIZES = [1664, 1792, 1920, 2048]


def seconds(workers):
    """Time of a sweep of 60 items, some tenths of a second each, on so many workers, compiled and warm."""
    from distributed import LocalCluster

    experiment = load("maps")
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, tempfile.TemporaryDirectory() as folder:
        pool = dask_workers(cluster.scheduler_address)
        run_experiment(experiment, f"{folder}/warm", sizes=[128], workers=pool)
        begun = time.perf_counter()
        run_experiment(experiment, f"{folder}/measured", sizes=SIZES, workers=pool)
        return time.perf_counter() - begun


class DaskScaling:
    """One worker's time over two workers'; 2 is perfect."""

    timeout = 600
    version = "2"
    unit = "times"

    def setup(self):
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise NotImplementedError from None

    def track_two_workers_over_one(self):
        return seconds(1) / seconds(2)


if __name__ == "__main__":
    before = os.getloadavg()[0]
    one, two = seconds(1), seconds(2)
    load_average = f"load {before:.1f}, {os.getloadavg()[0]:.1f}"
    print(f"1 worker {one:.2f} s, 2 workers {two:.2f} s: {one / two:.2f} times; {load_average}")
