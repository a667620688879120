"""Who computes the items: this process, local processes, or a Dask cluster, all behind `concurrent.futures.Executor`.

Nothing here schedules: items go to an executor, results are taken as they come. When a worker is lost, the items it
had in hand are computed again: an item's records depend on the item alone, so the result is the same.

Everywhere BLAS has one thread, so that sums keep one order and the same item gives the same bits with any number of
workers; the cores are used by running several items. Our own threads are shared out among the local workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from platform import python_version
from queue import SimpleQueue

from refattn._needs import missing
from refattn._threads import one_blas_thread, set_thread_count, thread_count
from refattn._version import __version__
from refattn.experiments.experiment import Item, Record
from refattn.experiments.records import Result

MOST_LOSSES = 3
"""How often an item may be in the hands of a worker that is lost."""

Run = Callable[[Item], list[Record]]


class ItemFailedError(Exception):
    """An item that could not be computed, and why."""


@dataclass(frozen=True)
class Workers:
    """Where items can be computed.

    `open` returns a context manager whose value is an executor, and is called again after the executor broke. An item
    may use so many `threads` (None leaves the process's setting); `in_flight` are handed over at once (None for all).
    """

    open: Callable[[], AbstractContextManager[Executor]]
    threads: int | None
    in_flight: int | None


def compute(run: Run, item: Item, threads: int | None, expected: dict[str, str]) -> Result:
    """Compute one item, in whichever process this is called.

    A RuntimeError says that the process has other versions of what results depend on than the one that asks.
    """
    if versions() != expected:
        ours = versions()
        differing = ", ".join(
            f"{name} {ours[name]} for {expected.get(name)}" for name in ours if ours[name] != expected.get(name)
        )
        raise RuntimeError(f"the worker has other versions: {differing}")
    if threads is not None and thread_count() != threads:
        set_thread_count(threads)
    with one_blas_thread():
        begun = time.perf_counter()
        records = run(item)
        return Result(item, time.perf_counter() - begun, tuple(deepcopy(list(records))))


@cache
def versions() -> dict[str, str]:
    """Return the versions that have to be the same wherever items of one experiment are computed."""
    found = {"refattn": __version__, "Python": python_version()}
    for name in ("numpy", "scipy", "numba", "pyfftw"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def here(run: Run, items: Iterable[Item]) -> Generator[Result, None, None]:
    """Yield the results one after the other, computed in this process."""
    for item in items:
        with _named(item):
            result = compute(run, item, None, versions())
        yield result


def elsewhere(run: Run, items: Iterable[Item], workers: Workers) -> Generator[Result, None, None]:
    """Yield the results in the order in which the workers finish them.

    An ItemFailedError says that an item raised an exception, or was in the hands of a lost worker `MOST_LOSSES` times.
    """
    waiting = deque(items)
    losses: Counter[int] = Counter()
    while waiting:
        in_hand: dict[Future[Result], Item] = {}
        finished: SimpleQueue[Future[Result]] = SimpleQueue()  # `wait` interrupted holds locks that the executor needs
        try:
            with workers.open() as executor:
                while waiting or in_hand:
                    while waiting and (workers.in_flight is None or len(in_hand) < workers.in_flight):
                        future = executor.submit(compute, run, waiting[0], workers.threads, versions())
                        in_hand[future] = waiting.popleft()
                        future.add_done_callback(finished.put)
                    future = finished.get()
                    with _named(in_hand[future]):
                        result = future.result()
                    del in_hand[future]
                    yield result
        except BrokenExecutor:
            lost = list(in_hand.values())
            waiting.extendleft(reversed(lost))
            losses.update(id(item) for item in lost)
            if not lost or max(losses[id(item)] for item in lost) >= MOST_LOSSES:
                raise ItemFailedError(
                    f"workers were lost {MOST_LOSSES} times, with these items in hand: {lost}"
                ) from None


@contextmanager
def _named(item: Item) -> Iterator[None]:
    """Name the item in whatever goes wrong with it, except the loss of its worker."""
    try:
        yield
    except BrokenExecutor:
        raise
    except (Exception, CancelledError) as error:
        reason = "the cluster gave it up" if isinstance(error, CancelledError) else f"{type(error).__name__}: {error}"
        raise ItemFailedError(f"item {item}: {reason}") from error


def local_workers(count: int) -> Workers:
    """Return so many processes of this machine, each with its share of our threads."""
    threads = max(1, thread_count() // count)
    return Workers(lambda: _processes(count, threads), threads, 2 * count)


@contextmanager
def _processes(count: int, threads: int) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")
    life, ours = context.Pipe(
        duplex=False
    )  # whoever closes `ours`, and be it the end of this process, ends the workers
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(life, threads))
    try:
        yield executor
    except BaseException:
        ours.close()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        ours.close()
        life.close()


def _begin(life: Connection, threads: int) -> None:
    """Set up a worker process: Ctrl-C is the caller's business, and a worker does not outlive its caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("REFATTN_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(threads)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            life.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def dask_workers(address: str) -> Workers:
    """Return the workers of an existing Dask cluster, one thread for every item.

    Dask itself gives the items of a lost worker to others. A ModuleNotFoundError says how to install it.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise missing("--scheduler", "distributed") from error

    @contextmanager
    def cluster() -> Iterator[Executor]:
        client = Client(address, timeout=10, set_as_default=False)
        try:
            executor = client.get_executor(pure=False)
            try:
                yield executor
            finally:
                executor.shutdown(wait=False)
        finally:
            client.close()

    return Workers(cluster, 1, None)
