"""What an experiment is: a question, cut into independent work items, each of which returns records (ours).

An item is a flat dictionary of JSON scalars: the whole input of its computation, seed included, and its identity.
Running an item twice gives the same records, apart from times. Whatever items share (weights, a text's tokens, a
capture) is read by the function that runs them, and may be kept from one item to the next, never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | bool | None
Item = dict[str, Any]
Record = dict[str, Scalar]


@dataclass(frozen=True)
class Experiment:
    """A question and the way to its answer.

    Parameters
    ----------
    name : str
        As the command line knows it, such as ``"error-against-k"``; its records are in ``NAME.jsonl``.
    question : str
        One sentence.
    sizes, quick_sizes : tuple of int
        Lengths n, or what else makes an item large, by default and for a trial.
    items : callable
        ``items(sizes) -> list of Item``, in the order of the records.
    run : callable
        ``run(item) -> list of Record``; a function of a module, so that another process can be handed it.
    needs : tuple of str, optional
        Modules without which it cannot run.
    timed : tuple of str, optional
        Fields of a record that are times, or follow from times: all other fields are the same on every run.
    """

    name: str
    question: str
    sizes: tuple[int, ...]
    quick_sizes: tuple[int, ...]
    items: Callable[[Sequence[int]], list[Item]]
    run: Callable[[Item], list[Record]]
    needs: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()


def significant(number: float, digits: int = 4) -> float | None:
    """Round to so many significant digits; None for what JSON has no word for. Keeps records small.

    >>> significant(0.123456), significant(float("nan"))
    (0.1235, None)
    """
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None
