"""What is measured by distance is counted by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from refattn.experiments.scratch.distances import by_distance, distances, of_repeated
from refattn.models.output import Evaluation
from refattn.training import Batch


@dataclasses.dataclass
class Knowing:
    """A model that is right about targets whose token came at most so far back."""

    reach: int

    def evaluate(self, tokens: Any, targets: Any, weights: Any = None, attention: Any = None) -> Evaluation:
        right = distances(tokens) <= self.reach
        losses = np.where(right, 1.0, 3.0)
        return Evaluation(0.0, 0.0, losses, right)


def test_targets_are_counted_by_distance() -> None:
    tokens = np.array([[1, 2, 3, 1, 2, 2, 3, 1], [4, 5, 6, 7, 8, 9, 4, 5]])
    weights = np.array([[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]], np.float32)  # 3, 3, 1, 4; 6, 6
    found = list(by_distance(Knowing(3), [Batch(tokens, tokens, weights)], None))
    assert [tuple(one) for one in found] == [
        (None, 6, 2.0, 0.5),
        (1, 1, 1.0, 1.0),
        (4, 3, pytest.approx(5 / 3), pytest.approx(2 / 3)),
        (8, 2, 3.0, 0.0),
    ]


def told(text: str) -> list[tuple[str, int]]:
    """Return the targets that count, with their distances."""
    tokens = np.frombuffer(text.encode("latin-1"), np.uint8).astype(np.int64)[None]
    far = of_repeated(Batch(tokens[:, :-1], tokens[:, 1:]))[0]
    return [(text[place + 1], int(distance)) for place, distance in enumerate(far) if distance]


def test_ends_of_names_and_numbers_that_came_before_count() -> None:
    assert told("Romeo and Romeo") == [("m", 10), ("e", 10), ("o", 10)]
    assert told("in 1601, in 1601, in 1601!") == 2 * [("0", 9), ("1", 9)]
    assert told("ROMEO. Romeo. ROMEO") == [("M", 14), ("E", 14), ("O", 14)]


@pytest.mark.parametrize(
    "text",
    ["romeo and romeo", "Romeo and Romeos", "The The The", "12 and 12", "ARomeo Romeo", "RomeoRomeo", "1601 16015"],
)
def test_what_is_no_name_or_came_only_in_part_does_not_count(text: str) -> None:
    assert told(text) == []
