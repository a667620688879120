"""Claims in processes of their own, several at once; those about times come last, one after the other (ours).

Whoever measures a claim, BLAS has one thread for it unless it is about times: a row has the same numbers wherever it
was measured. A process that is lost takes its claim with it, not the report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from queue import SimpleQueue

from refattn._threads import one_blas_thread, thread_count
from refattn.experiments.workers import local_workers
from refattn.report.ledger import Claim, Measurement, Row, run_each

FEWEST, MOST = 12, 4
"""So many claims have to be there, or they are measured before processes have started; so many processes at most."""

_Found = tuple[Measurement | None, str, bool, float]
"""A row without its claim, whose function cannot be sent."""

_Take = Callable[[deque[Claim]], Claim]
"""From which end."""


def run_apart(claims: Iterable[Claim], *, quick: bool) -> Iterator[Row]:
    """Yield the rows of claims of the ledger as they are measured: a process for each thread, up to four."""
    claims = list(claims)
    untimed, processes = [claim for claim in claims if not claim.timed], min(thread_count(), MOST)
    if processes > 1 and len(untimed) >= FEWEST:
        yield from _in_processes(untimed, quick, processes)
    else:
        yield from (Row(claim, *_found(claim, quick)) for claim in untimed)
    yield from run_each([claim for claim in claims if claim.timed], quick=quick)


def _in_processes(claims: list[Claim], quick: bool, processes: int) -> Iterator[Row]:
    """Yield the rows as they are finished; what was in hand when a process was lost is measured once more, alone."""
    waiting, suspects = deque(claims), deque[Claim]()
    while waiting or suspects:
        alone = bool(suspects)
        todo = deque([suspects.popleft()]) if alone else waiting
        # Claims of one subject compile the same loops: one process begins at the front, the next at the back.
        free: list[_Take] = [(deque.popleft, deque.pop)[number % 2] for number in range(processes)]
        in_hand: dict[str, tuple[Claim, _Take]] = {}
        finished = SimpleQueue[tuple[str, Future[_Found]]]()
        try:
            with local_workers(1 if alone else processes).open() as executor:
                while todo or in_hand:
                    while todo and free:
                        take = free.pop(0)
                        claim = take(todo)
                        in_hand[claim.id] = claim, take
                        future = executor.submit(_found_by_id, claim.id, quick)
                        future.add_done_callback(partial(_put, finished, claim.id))
                    name, future = finished.get()
                    found = _result(future)
                    claim, take = in_hand.pop(name)
                    free.append(take)
                    yield Row(claim, *found)
        except BrokenExecutor:
            lost = [claim for claim, _ in in_hand.values()]
            if alone:
                yield from (Row(claim, None, "the check broke: its process ended", broke=True) for claim in lost)
            else:
                suspects.extend(lost)


def _put(finished: SimpleQueue[tuple[str, Future[_Found]]], name: str, future: Future[_Found]) -> None:
    finished.put((name, future))


def _result(future: Future[_Found]) -> _Found:
    """Return what was found, or that it could not be sent."""
    try:
        return future.result()
    except BrokenExecutor:
        raise
    except Exception as error:
        return None, f"the check broke: {type(error).__name__}: {error}", True, 0.0


def _found_by_id(name: str, quick: bool) -> _Found:
    """Measure a claim of the ledger, in whichever process."""
    from refattn.report.claims import ALL

    (claim,) = (claim for claim in ALL if claim.id == name)
    return _found(claim, quick)


def _found(claim: Claim, quick: bool) -> _Found:
    with one_blas_thread():
        (row,) = run_each([claim], quick=quick)
    return row.found, row.reason, row.broke, row.seconds
