"""Threads: one small pool that runs independent pieces of work which release the interpreter's lock.

A computation is cut into pieces that do not depend on the number of threads, and every piece writes to its own part of
the result, so 1 thread and 2 give the same bits. The caller works too; the pool holds one thread less than asked for,
starts at the first parallel call, and is forgotten by a forked child, which starts its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar

from refattn._validation import as_count

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = threading.Lock()
_asked: int | None = None
_pool: ThreadPoolExecutor | None = None


def thread_count() -> int:
    """Return how many threads a parallel call uses.

    Returns
    -------
    int
        What `set_thread_count` was given; else ``REFATTN_NUM_THREADS`` or ``OMP_NUM_THREADS`` of the environment; else
        the processors this process may run on. An empty variable counts as none.

    Raises
    ------
    ValueError
        The variable is no positive integer.

    Notes
    -----
    O(1). Source: ours.

    Examples
    --------
    >>> from refattn.tuning import thread_count
    >>> thread_count() >= 1
    True
    """
    if _asked is not None:
        return _asked
    for name in ("REFATTN_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").strip()
        count = value.partition(",")[0].strip() if name.startswith("OMP") else value  # OpenMP's: one for each level
        if not value:
            continue
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise ValueError(f"{name}: {value!r} came, a whole number of at least 1 was wanted")
        return int(count)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_thread_count(threads: int | None) -> None:
    """Use so many threads from now on; no bit of a result changes.

    Parameters
    ----------
    threads : int or None
        At least 1; None asks the environment again.

    Raises
    ------
    TypeError, ValueError
        Not a positive integer.

    Notes
    -----
    O(1). Source: ours.

    Examples
    --------
    >>> from refattn.tuning import set_thread_count, thread_count
    >>> set_thread_count(2); thread_count()
    2
    >>> set_thread_count(None)
    """
    global _asked, _pool
    threads = None if threads is None else as_count("threads", threads, least=1)
    with _lock:
        _asked = threads
        pool, _pool = _pool, None
    if pool is not None:
        pool.shutdown(wait=False)  # what it was given is still finished


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use so many threads within; afterwards what was asked for before, which may be that the environment says it."""
    before = _asked
    set_thread_count(count)
    try:
        yield
    finally:
        set_thread_count(before)


class ComputedOnce(Generic[Result]):
    """A property that is computed at its first use and kept, with no lock.

    `functools.cached_property` has one for all instances, before Python 3.12: held by a thread when another one forks,
    it stays held in the child, which waits for it for ever.
    """

    def __init__(self, function: Callable[[Any], Result]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Result:
        if instance is None:
            return self  # type: ignore[return-value]
        kept: Result = instance.__dict__.setdefault(self._name, self._function(instance))
        return kept


def for_each(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call ``function(item)`` for every item, in any order, on the threads there are.

    Returns or raises after every thread has stopped. Of several exceptions that of the first item is raised, so it does
    not depend on the number of threads either. Where no thread can be started (memory, or an interpreter that is
    shutting down) the caller does what is left. A function called here must not call `for_each`.
    """
    items = list(items)
    helpers = min(thread_count(), len(items)) - 1 if len(items) > 1 else 0  # to ask for the count takes its time
    remaining = iter(enumerate(items))  # taking the next one is atomic under the interpreter's lock
    failed: dict[int, BaseException] = {}

    def work() -> None:
        for place, item in remaining:  # in order: whatever comes before an item that fails has been taken
            try:
                function(item)
            except BaseException as error:
                failed[place] = error
                return

    futures = _submit(work, helpers) if helpers > 0 else []
    try:
        work()
    finally:
        started = [future for future in futures if not future.cancel()]  # one that did not has nothing left to do
        wait(started)
    try:
        if failed:
            raise failed[min(failed)]
    finally:
        failed.clear()  # an exception holds its frame, which holds this
    for future in started:
        future.result()  # memory ran out while a failure was noted


def map_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function(item)`` for every item, in their order, computed as `for_each` does."""
    items = list(items)
    found: dict[int, Result] = {}

    def store(place: int) -> None:
        found[place] = function(items[place])

    for_each(store, range(len(items)))
    return [found[place] for place in range(len(items))]


def _submit(work: Callable[[], None], helpers: int) -> list[Future[None]]:
    """Hand `work` to as many threads of the pool, or to as many as can be had."""
    global _pool
    futures = []
    with _lock:
        try:
            if _pool is None:
                _pool = ThreadPoolExecutor(max(thread_count() - 1, 1), thread_name_prefix="refattn")
            for _ in range(helpers):
                future = _pool.submit(work)
                futures.append(future)
        except (RuntimeError, MemoryError):
            # The pool may have taken the work without a thread for it. Nothing of it may run on after the caller.
            pool, _pool = _pool, None
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
    return futures


_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit: Any = None


@cache
def _blas_controller() -> Any:
    import scipy.linalg.cython_blas  # noqa: F401  # what compiled loops multiply with: it has to be there to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _take_blas() -> None:
    """Let the calling thread be the one whose limits count, or, after it has set them, whoever comes next.

    Newer threadpoolctl lets one thread alone set OpenBLAS's limit, and ignores the others silently. Here the thread
    that lowers it and the one that restores it may be two.
    """
    for library in _blas_controller().lib_controllers:
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let every BLAS in the process use one thread; the last call to leave restores what the first one found.

    The threads are ours, and sums keep one order, whatever BLAS was allowed outside.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        if _blas_users == 0:
            _take_blas()
            _blas_limit = _blas_controller().limit(limits=1, user_api="blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _take_blas()
                _blas_limit.restore_original_limits()
                _take_blas()


def _before_fork() -> None:
    _lock.acquire()
    _blas_lock.acquire()


def _after_fork_in_parent() -> None:
    _blas_lock.release()
    _lock.release()


def _after_fork_in_child() -> None:
    """The pool's threads, and whoever held the BLAS at one thread, are not here."""
    global _lock, _pool, _blas_lock, _blas_users
    _lock, _pool = threading.Lock(), None
    _blas_lock = threading.Lock()
    if _blas_users > 0:
        _blas_users = 0
        _take_blas()
        _blas_limit.restore_original_limits()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
