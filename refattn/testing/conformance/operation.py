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

Arrays = dict[str, FloatArray]


@dataclass(frozen=True)
class Problem:
    """One set of inputs.

    Attributes
    ----------
    arrays : dict of str to ndarray
        The inputs by name, in the order the function takes them.
    options : dict
        What it takes by keyword.
    smooth : bool
        Whether the operation is differentiable here; gradients are judged only where it is.
    seed : int
        Of the upstream gradient and of the perturbations.
    """

    arrays: Arrays
    options: dict[str, Any]
    smooth: bool = True
    seed: int = 0

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

    def perturbed(self, names: tuple[str, ...], unit: float, draw: int) -> Problem:
        """Return the problem with the entries of the named arrays changed by about a unit of rounding, relatively."""
        rng = np.random.default_rng([self.seed, 2, draw])
        arrays = dict(self.arrays)
        for name in names:
            noise = rng.uniform(-1, 1, arrays[name].shape).astype(arrays[name].dtype)
            arrays[name] = arrays[name] * (1 + arrays[name].dtype.type(unit) * noise)
        return Problem(arrays, self.options, self.smooth, self.seed)


@dataclass(frozen=True)
class Case:
    """A family of problems of one kind, of any size.

    Attributes
    ----------
    name : str
        Says what is special about it.
    kind : {"ordinary", "adversarial", "degenerate", "real"}
        Heading in the report.
    n : int
        Size at which it is checked; smaller ones are built to shrink a failure.
    build : callable
        ``build(n, seed)`` returns the problem.
    """

    name: str
    kind: str
    n: int
    build: Callable[[int, int], Problem]


class Plain(Protocol):
    """A plain implementation, right unless asked for a mistake."""

    def __call__(
        self, problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None
    ) -> Arrays:
        """Return the output, and the gradients where an upstream gradient comes."""


@dataclass(frozen=True)
class Operation:
    """An operation that can be checked.

    Attributes
    ----------
    name : str
        As given to `check_attention`.
    signature, backward_signature : str
        What the function, and its backward, have to accept.
    axes : dict of str to str
        Letters of the axes of every input and of the output, out of B, H, N, D; empty letters: layouts do not apply.
    differentiable : tuple of str
        Inputs with gradients, in the order the backward returns them.
    defaults : callable
        ``defaults(problem)`` returns what the options are where a function does not take them.
    cases : tuple of Case
        The grid.
    truth : callable
        ``truth(problem, upstream)`` returns the right results in float64.
    plain : Plain
        The yardstick, and the source of wrong references.
    sizes : callable
        ``sizes(problem, upstream)`` returns the natural size of each result: what its rounding errors are a few units
        of, however small the result itself is.
    faults : dict of str to str
        Known mistakes `plain` can make, and what each is in a sentence.
    perturbed : tuple of str
        Inputs on which the results depend continuously.
    """

    name: str
    signature: str
    backward_signature: str
    axes: Mapping[str, str]
    differentiable: tuple[str, ...]
    defaults: Callable[[Problem], dict[str, Any]]
    cases: tuple[Case, ...]
    truth: Callable[[Problem, FloatArray | None], Arrays]
    plain: Plain
    sizes: Callable[[Problem, FloatArray | None], dict[str, float]]
    faults: Mapping[str, str]
    perturbed: tuple[str, ...]
