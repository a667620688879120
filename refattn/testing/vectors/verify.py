"""The reference vectors against this package, in float64 (ours)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.convbasis import oracle
from refattn.convbasis.attention import conv_attention
from refattn.convbasis.basis import basis_from_starts, decompose
from refattn.convbasis.recovery import recover
from refattn.dense import dense_attention_backward, dense_attention_forward
from refattn.sparsek.attention import sparsek_attention_backward, sparsek_attention_forward
from refattn.sparsek.operator import sparsek_operator, sparsek_threshold, sparsek_vjp
from refattn.sparsek.prefix import prefix_thresholds
from refattn.testing.tolerances import tolerance
from refattn.testing.vectors.files import VectorCase, load_vectors

Arrays = dict[str, NDArray[Any]]


class VectorCheck(NamedTuple):
    """One case, verified: the largest error of a result, relative to its largest entry, and what it may be.

    The error is infinite where the two are infinite elsewhere.
    """

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound


def verify_vectors(folder: Traversable | None = None) -> tuple[VectorCheck, ...]:
    """Compare every stored result, of what `load_vectors` reads, with what this package computes from the inputs.

    >>> all(check.passed for check in verify_vectors())
    True
    """
    bound = tolerance("reordered").rtol
    checks = []
    for case in load_vectors(folder):
        computed = _COMPUTE[case.operation](case)
        error = max(difference(computed[name], case.arrays[name]) for name in computed)
        checks.append(VectorCheck(f"{case.operation}: {case.name}", error, bound))
    return tuple(checks)


def difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference relative to the largest finite entry expected (absolute where that is zero).

    >>> difference(np.array([1.0, -np.inf]), np.array([2.0, -np.inf]))
    0.5
    """
    if np.shape(got) != expected.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got - expected))
    size = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)) or 1.0
    largest = float(error.max(initial=0.0)) / size
    return largest if np.isfinite(largest) else float("inf")


def _dense(case: VectorCase) -> Arrays:
    x = case.arrays
    rule: tuple[Any, ...] = ("causal" if case.options["causal"] else "full",)
    if "mask" in x:
        rule += (x["mask"].astype(bool),)
    out, cache = dense_attention_forward(
        x["q"], x["k"], x["v"], mask=rule, scale=case.options["scale"], method="oracle"
    )
    found = dense_attention_backward(x["dout"], cache)
    return {"out": out, "log_sum_exp": cache.log_sum_exp, "dq": found.q, "dk": found.k, "dv": found.v}


def _basis(case: VectorCase) -> Arrays:
    basis = decompose(case.arrays["h"])
    exponential = basis.exp_transform().to_dense()
    return {"starts": basis.starts, "kernels": basis.kernels, "vectors": basis.vectors, "exp_h": exponential}


def _conv(case: VectorCase) -> Arrays:
    q, k, v, dout, starts = (case.arrays[x] for x in ("q", "k", "v", "dout", "starts"))
    scale = case.options["scale"]
    basis = basis_from_starts(q, k, starts, scale=scale)
    out = conv_attention(q, k, v, basis=basis, method="oracle")
    found, _ = oracle.approximation_gradient(dout, q, k, v, basis, None, scale)
    return {"kernels": basis.kernels, "out": out, "dq": found.q, "dk": found.k, "dv": found.v}


def _operator(case: VectorCase) -> Arrays:
    z, k = case.arrays["z"], case.options["k"]
    p = sparsek_operator(z, k)
    found = sparsek_vjp(p, case.arrays["dp"])
    return {"p": p, "tau": sparsek_threshold(z, k), "dz": found.z, "dk": found.k}


def _sparsek(case: VectorCase) -> Arrays:
    arrays = [case.arrays[x] for x in ("q", "k", "v", "scores")]
    out, cache = sparsek_attention_forward(*arrays, **case.options, method="paper")
    found = sparsek_attention_backward(case.arrays["dout"], cache)
    return {"out": out, **{f"d{x}": gradient for x, gradient in found._asdict().items()}}


_COMPUTE: dict[str, Callable[[VectorCase], Arrays]] = {
    "dense": _dense,
    "conv-basis": _basis,
    "conv-recover": lambda case: {"starts": recover(case.arrays["q"], case.arrays["k"], **case.options).starts},
    "conv": _conv,
    "sparsek-operator": _operator,
    "sparsek-thresholds": lambda case: {"tau": prefix_thresholds(case.arrays["z"], case.options["k"], method="paper")},
    "sparsek": _sparsek,
}
