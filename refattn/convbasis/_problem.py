"""A checked conv attention problem: what every method receives, with common leading axes.

Causal attention has one basis, of the logits ``H = M ∘ (scale · Q Kᵀ)``. Full attention has two: of the lower triangle
with the diagonal, and of the strict upper triangle, which transposed is lower triangular with Q and K exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._validation import FloatArray, as_float_arrays, as_option, as_real, as_scale, cast
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.bounds import ROW_TOLERANCE
from refattn.convbasis.fast.cost import Plan
from refattn.convbasis.recovery import recover_heads, require_square, search_options

METHODS = ("fast", "paper", "oracle")


@dataclass(frozen=True)
class ConvProblem:
    """Checked inputs of conv attention, in the dtype of the computation, and how their leading axes fit together.

    `plan` is what the caller asked for; `given` are the caller's bases, lower and, for full attention, upper; where
    there are none, `search` are k, T and the threshold δ − 2Tε to recover them with.
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    layout: HeadLayout
    full: bool
    method: str
    plan: Plan | None
    scale: float
    tol: float
    given: tuple[ConvBasis, ...] | None
    search: tuple[int, int, float] | None
    check_finite: bool

    def kept(self) -> ConvProblem:
        """Return the same problem with read-only copies of the inputs."""
        return replace(self, q=kept(self.q), k=kept(self.k), v=kept(self.v))

    def bases(self) -> tuple[ConvBasis, ConvBasis | None]:
        """The basis of the logits of every head, and that of the transposed ones for full attention."""
        if self.search is None:
            assert self.given is not None
            return self.given[0], self.given[1] if self.full else None
        recover, (queries, keys, _) = _recover_heads(self.method), self.layout.expand(self.q, self.k, self.v)
        lower = recover(queries, keys, *self.search, self.scale)
        return lower, recover(keys, queries, *self.search, self.scale) if self.full else None

    def merged(self, basis: ConvBasis) -> ConvBasis:
        """A basis with the leading axes of the output."""
        lead, (terms, n) = self.layout.lead, basis.kernels.shape[-2:]
        return ConvBasis._trusted(basis.starts.reshape(*lead, terms), basis.kernels.reshape(*lead, terms, n))


def as_problem(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    n_basis: int | None,
    probe: int | None,
    delta: float | None,
    eps: float,
    basis: ConvBasis | tuple[ConvBasis, ConvBasis] | None,
    mask: str,
    scale: float | None,
    method: str,
    plan: Plan | None,
    tol: float | None,
    check_finite: bool,
) -> ConvProblem:
    """Check the arguments of conv attention, or raise naming the one that does not fit."""
    q, k, v = as_float_arrays(check_finite=check_finite, q=q, k=k, v=v)
    layout = HeadLayout.of(q, k, v)
    require_square(q, k)
    full = as_option("mask", mask, ("causal", "full")) == "full"
    as_option("method", method, METHODS)
    if plan is not None and (method != "fast" or not isinstance(plan, Plan)):
        raise TypeError(f"plan: {plan!r} came with method {method!r}, a Plan with method 'fast' was wanted")
    factor = as_scale(scale, q.shape[-1], q.dtype)
    row_tol = ROW_TOLERANCE[q.dtype.name] if tol is None else as_real("tol", tol, least=0.0)
    n, given, search = q.shape[-2], None, None
    if basis is None:
        missing = [x for x, value in (("n_basis", n_basis), ("probe", probe), ("delta", delta)) if value is None]
        if missing:
            raise TypeError(f"{', '.join(missing)}: nothing came; n_basis, probe and delta, or a basis, were wanted")
        search = search_options(n, n_basis, probe, delta, eps)
    elif full and not (isinstance(basis, tuple) and len(basis) == 2):
        raise TypeError("basis: full attention wants a pair (lower, upper) of ConvBasis")
    else:
        given = tuple(_given(one, layout, n, q.dtype) for one in (basis if full else (basis,)))
    return ConvProblem(q, k, v, layout, full, method, plan, factor, row_tol, given, search, check_finite)


def _recover_heads(method: str) -> Callable[..., ConvBasis]:
    """Recover as the method does it: next to the paper, or compiled. Numba is imported when it is first needed."""
    if method != "fast":
        return recover_heads
    from refattn.convbasis.fast import recover

    return recover.recover_heads


def _given(basis: Any, layout: HeadLayout, n: int, dtype: np.dtype[Any]) -> ConvBasis:
    """Give a caller's basis the leading axes of the computation."""
    if not isinstance(basis, ConvBasis):
        raise TypeError(f"basis: {type(basis).__name__} came, a ConvBasis was wanted")
    lead = basis.starts.shape[:-1]
    if basis.n != n or lead not in ((), layout.lead):
        raise ValueError(f"basis: heads {lead} and n = {basis.n} came, heads {layout.lead} and n = {n} were wanted")
    terms = basis.starts.shape[-1]
    kernels = cast("basis", basis.kernels, dtype)
    return ConvBasis._trusted(
        np.broadcast_to(basis.starts, (*layout.lead, terms)).reshape(*layout.inner, terms),
        np.broadcast_to(kernels, (*layout.lead, terms, n)).reshape(*layout.inner, terms, n),
    )
