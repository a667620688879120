"""Cases that ask for properties beyond values, and for arrays that do not lie in memory row after row (ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refattn.testing.conformance.adapters import GARBAGE, MEMORY
from refattn.testing.conformance.crossed_cases import padded_per_batch
from refattn.testing.conformance.dense_cases import FULL, Attention
from refattn.testing.conformance.operation import Case, Problem, Shape
from refattn.testing.conformance.properties import property_case


@dataclass(frozen=True)
class Garbage(Attention):
    """Numbers that are no keys and no values where the mask hides them: they must not reach the output."""

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        problem = super().__call__(shape, seed)
        hidden = ~problem.options["mask"].any(axis=-2)[..., None]
        arrays = {x: np.where(hidden, GARBAGE, a) if x in "kv" else a for x, a in problem.arrays.items()}
        return replace(problem, arrays=arrays)


def properties(content: Callable[[Shape, int], Problem], shape: Shape, prefixes: bool = True) -> tuple[Case, ...]:
    """Return the cases of an operation of causal attention, on a prefix of whose inputs the same content may stand."""
    several = replace(shape, batch=3)
    before = property_case("a row does not depend on what follows", "before", shape, content, "standard")
    return (
        property_case("the same bits from run to run", "again", several, content, "standard"),
        property_case("a row does not depend on its batch", "alone", several, content, "standard"),
        *([before] if prefixes else []),
        property_case("memory around the output", "buffer", several, content, "standard"),
        *(
            Case(f"{memory} in memory", "property", several, content, profile="standard", memory=memory)
            for memory in MEMORY[1:]
        ),
    )


PADDED = Attention(causal=False, mask=padded_per_batch)
DENSE_PROPERTIES = (
    *properties(Attention(), Shape(150, d=32, heads=4, kv_heads=2)),
    property_case("the same bits from run to run, full", "again", Shape(70, 333), FULL, "standard"),
    property_case("NaN in masked keys", "hidden", Shape(40, batch=3), PADDED, "standard"),
    Case(
        "garbage in masked keys", "property", Shape(40, batch=3), Garbage(causal=False, mask=padded_per_batch),
        frozenset({"mask-batched"}), "standard",
    ),
)  # fmt: skip
