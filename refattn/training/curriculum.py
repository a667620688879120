"""A curriculum: short texts first, each lesson for some steps, then the task itself (ours, after Bengio et al. 2009).

Which lesson a batch is of follows from its number, so that a training goes on from any step. Tokens are numbered the
same in all: lessons differ in how long texts are and how much they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from refattn.training.batches import Batch


class Lesson(NamedTuple):
    """How many steps, and their batches by number."""

    steps: int
    batches: Callable[[int], Batch]


def in_order(lessons: Sequence[Lesson], last: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """Return the batches, by number, of the lessons one after the other and then of what is learned in the end."""

    def batches(number: int) -> Batch:
        end = 0
        for lesson in lessons:
            end += lesson.steps
            if number < end:
                return lesson.batches(number)
        return last(number)

    return batches
