"""What an operation is to a conformance check: cases, truth, a plain implementation, known mistakes (ours).

Every array has the leading axes (B, H): ``q (B, H, n, d)``, ``k (B, H_kv, n, d)``, ``v (B, H_kv, n, d_v)``,
``scores (B, H_kv, n)``, ``z (B, n)``. Results are named ``out`` and, for the gradient of the input x, ``dx``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.precision import Precision
from refattn.testing.conformance.rounding import Spread

Arrays = dict[str, FloatArray]

PROFILES = ("quick", "standard", "long")
"""Each runs its own cases and those of the ones before."""


@dataclass(frozen=True)
class Sample:
    """Which rows of the results of a long problem are judged; their truth and plain versions are of these alone."""

    queries: NDArray[np.int64]  # rows of out and dq
    keys: NDArray[np.int64]  # rows of dk and dv
    held: Arrays = field(default_factory=dict, compare=False)  # what is computed once: log-sum-exps, row sums

    def rows(self, result: str) -> NDArray[np.int64]:
        """Return the rows judged of a result."""
        return self.keys if result in ("dk", "dv") else self.queries

    def of(self, results: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the rows judged of whole results."""
        return {
            name: array[..., self.queries] if name == "lse" else array[..., self.rows(name), :]
            for name, array in results.items()
        }


@dataclass(frozen=True)
class Problem:
    """One set of inputs."""

    arrays: Arrays  # by name, in the order the function takes them
    options: dict[str, Any]  # what it takes by keyword
    smooth: bool = True  # whether it is differentiable here: gradients are judged only then
    seed: int = 0  # of the upstream gradient and of the perturbations
    sample: Sample | None = None  # of the rows that `Operation.truth` and `plain` return; all where None
    rows: NDArray[np.int64] | None = None  # where the queries stand in their sequence; all of it where None
    lse: bool = False  # whether the log-sum-exps of the rows are judged too

    def rounded(self, to: Precision) -> Problem:
        """Return the problem with its arrays rounded to a precision: what the function receives and is judged on."""
        options = {x: to.round(a) if _is_float(a) else a for x, a in self.options.items()}
        return replace(self, arrays={x: to.round(a) for x, a in self.arrays.items()}, options=options)

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
        return replace(self, arrays=arrays)

    def at_rows(self, rows: NDArray[np.int64]) -> Problem:
        """Return the problem of some of the queries against all the keys; a mask is that of these rows."""
        mask = self.options.get("mask")
        options = self.options if mask is None else {**self.options, "mask": mask[..., rows, :]}
        arrays = {**self.arrays, "q": self.arrays["q"][..., rows, :]}
        return replace(self, arrays=arrays, options=options, sample=None, rows=rows)


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem; an operation without heads, widths or keys uses `n` and `batch` alone."""

    n: int
    n_k: int = 0  # as n where 0
    d: int = 16
    d_v: int = 0  # as d where 0
    batch: int = 1
    heads: int = 2
    kv_heads: int = 0  # as heads where 0

    def __post_init__(self) -> None:
        for name, like in (("n_k", self.n), ("d_v", self.d), ("kv_heads", self.heads)):
            object.__setattr__(self, name, getattr(self, name) or like)

    def at(self, n: int) -> Shape:
        """Return the shape with n queries, and with keys in proportion."""
        return replace(self, n=n, n_k=n if self.n == self.n_k else max(1, round(self.n_k * n / self.n)))

    @property
    def tags(self) -> frozenset[str]:
        """What is special about it."""
        said = {
            "rectangular": self.n != self.n_k,
            "decode": self.n == 1 < self.n_k,
            "d_v": self.d_v != self.d,
            "batch": self.batch > 1,
            "grouped": self.kv_heads < self.heads,
            "long": max(self.n, self.n_k) > 1024,
        }
        return frozenset(name for name, there in said.items() if there)


@dataclass(frozen=True)
class Case:
    """A family of problems of one content, of any shape; ``build(n, seed)`` returns one.

    `content` compares equal to another that builds the same: cases of one content moved to one shape are one case.
    """

    name: str  # says what is special about it
    kind: str  # ordinary, adversarial, degenerate, real, crossed, long or property: a heading in the report, a tag
    shape: Shape  # at which it is checked; smaller ones are built to shrink a failure
    content: Callable[[Shape, int], Problem]
    own_tags: frozenset[str] = frozenset()  # beside those of the shape and of the content
    profile: str = "quick"  # the smallest that runs it
    gradients: bool = True  # whether they are asked for
    memory: str = "contiguous"  # how its arrays lie in memory
    asks: str = ""  # for a property beyond values, rather than for values

    @property
    def n(self) -> int:
        """The length at which it is checked."""
        return self.shape.n

    @property
    def tags(self) -> frozenset[str]:
        """Features that a function may lack, by which cases are chosen and left out."""
        memory = frozenset() if self.memory == "contiguous" else frozenset({"strided", self.memory})
        of_content: frozenset[str] = getattr(self.content, "tags", frozenset())
        return self.own_tags | self.shape.tags | of_content | memory | {self.kind}

    def build(self, n: int, seed: int) -> Problem:
        """Return the problem with n queries."""
        return self.content(self.shape.at(n), seed)


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
    mistakes: tuple[str, ...] = ()  # known mistakes that a case should notice, by which its power is measured
    whole: Callable[[Problem, FloatArray | None], Arrays] | None = None
    """All rows of a long problem, fast: where it differs most from a result, rows are judged; None: all rows are."""
    empty_rows: Callable[[Problem], NDArray[np.bool_]] | None = None  # which rows of q see nothing
    can_make: Callable[[Problem, str], bool] = lambda problem, fault: True  # whether a mistake can show in a problem
    more_options: tuple[str, ...] = ()  # that some cases have, and a function need not take
    with_gradient: tuple[str, ...] = ()  # those of them of which a backward may return the gradient, after the inputs'
    of_backward: tuple[str, ...] = ()  # those of them that only a backward takes
