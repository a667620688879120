"""What an operation is to a conformance check: cases, truth, a plain implementation, known mistakes (ours).

Every array has the leading axes (B, H): ``q (B, H, n, d)``, ``k (B, H_kv, n, d)``, ``v (B, H_kv, n, d_v)``,
``scores (B, H_kv, n)``, ``z (B, n)``. Results are named ``out`` and, for the gradient of the input x, ``dx``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.precision import Precision
from refattn.testing.conformance.rounding import Spread

Arrays = dict[str, FloatArray]


@dataclass(frozen=True)
class Problem:
    """One set of inputs."""

    arrays: Arrays  # by name, in the order the function takes them
    options: dict[str, Any]  # what it takes by keyword
    smooth: bool = True  # whether it is differentiable here: gradients are judged only then
    seed: int = 0  # of the upstream gradient and of the perturbations

    def rounded(self, to: Precision) -> Problem:
        """Return the problem with its arrays rounded to a precision: what the function receives and is judged on."""
        return Problem({x: to.round(a) for x, a in self.arrays.items()}, self.options, self.smooth, self.seed)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output: that of q with the width of v, or that of the scores."""
        if "z" in self.arrays:
            return self.arrays["z"].shape
        return (*self.arrays["q"].shape[:-1], self.arrays["v"].shape[-1])

    def upstream(self, to: Precision) -> FloatArray:
        """Return an upstream gradient of the output, rounded to a precision."""
        rng = np.random.default_rng([self.seed, 1])
        return to.round(rng.standard_normal(self.output_shape))

    def perturbed(self, units: Mapping[str, float], draw: int) -> Problem:
        """Return the problem with the entries of the named arrays changed, relatively, by up to the unit given."""
        rng = np.random.default_rng([self.seed, 2, draw])
        arrays = dict(self.arrays)
        for name, unit in units.items():
            noise = rng.uniform(-1, 1, arrays[name].shape).astype(arrays[name].dtype)
            arrays[name] = arrays[name] * (1 + arrays[name].dtype.type(unit) * noise)
        return Problem(arrays, self.options, self.smooth, self.seed)


@dataclass(frozen=True)
class Case:
    """A family of problems of one kind, of any size; ``build(n, seed)`` returns one."""

    name: str  # says what is special about it
    kind: str  # ordinary, adversarial, degenerate or real: a heading in the report
    n: int  # size at which it is checked; smaller ones are built to shrink a failure
    build: Callable[[int, int], Problem]


class Plain(Protocol):
    """A plain implementation, right unless asked for a mistake."""

    def __call__(
        self, problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None
    ) -> Arrays:
        """Return the output, and the gradients where an upstream gradient comes."""


@dataclass(frozen=True)
class Operation:
    """An operation that can be checked."""

    name: str  # as given to `check_attention`
    signature: str  # what the function has to accept
    backward_signature: str
    axes: Mapping[str, str]  # B, H, N, D of every input and of the output; empty letters: layouts do not apply
    differentiable: tuple[str, ...]  # in the order the backward returns their gradients
    defaults: Callable[[Problem], dict[str, Any]]  # options where a function does not take them
    cases: tuple[Case, ...]
    truth: Callable[[Problem, FloatArray | None], Arrays]  # of a problem and an upstream gradient, in float64
    plain: Plain  # the yardstick, and the source of wrong references
    spread: Callable[[Problem, FloatArray | None, Precision], dict[str, Spread]]
    """What independent roundings do to each result."""
    faults: Mapping[str, str]  # known mistakes `plain` can make, and what each is in a sentence
    perturbed: tuple[str, ...]  # inputs on which the results depend continuously
