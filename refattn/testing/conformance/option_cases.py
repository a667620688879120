"""Cases of exact attention with the options that kernels have (ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.testing.conformance.adapters import GARBAGE
from refattn.testing.conformance.dense_cases import Attention
from refattn.testing.conformance.operation import Case, Problem, Shape

MOST = 2**22
"""Logits up to which such a case is built: every row of it is judged."""

Given = Callable[[Shape, np.random.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Optioned(Attention):
    """Problems of attention with one option more, or with several that belong together."""

    give: tuple[Given, ...] = ()
    names: frozenset[str] = frozenset()

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        problem = super().__call__(shape, seed)
        rng = np.random.default_rng([seed, 5])
        more: dict[str, Any] = {}
        for give in self.give:
            more |= give(shape, rng)
        return replace(problem, options={**problem.options, **more})

    @property
    def tags(self) -> frozenset[str]:
        """Those of attention, and the options'."""
        return super().tags | self.names

    def refuses(self, shape: Shape) -> str:
        """Why there is none of a shape."""
        logits = shape.batch * shape.heads * shape.n * shape.n_k
        return f"an option is judged up to {MOST} logits, not {logits}" if logits > MOST else ""


@dataclass(frozen=True)
class Paged(Optioned):
    """Keys and values in pages of 16, out of order, with others between them that hold garbage."""

    size: int = 16

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one: sequences of several lengths, whose last pages are partly filled."""
        problem = super().__call__(shape, seed)
        rng = np.random.default_rng([seed, 6])
        many = -(-shape.n_k // self.size)
        lengths = rng.integers(max(1, shape.n_k // 2), shape.n_k, size=shape.batch, endpoint=True)
        table = rng.permutation(shape.batch * many + 3)[: shape.batch * many].reshape(shape.batch, many)
        arrays = dict(problem.arrays)
        for name in "kv":
            held = problem.arrays[name]
            pages = np.full((shape.batch * many + 3, held.shape[1], self.size, held.shape[-1]), GARBAGE)
            for b in range(shape.batch):
                for place in range(many):
                    part = held[b, :, place * self.size : min((place + 1) * self.size, lengths[b])]
                    pages[table[b, place], :, : part.shape[1]] = part
            arrays[name] = pages
        more = {"block_table": table.astype(np.int64), "lengths": lengths.astype(np.int64)}
        return replace(problem, arrays=arrays, options={**problem.options, **more})


@dataclass(frozen=True)
class Bias:
    """A bias of its own for the axes named, shared along the others."""

    axes: str = "BHNM"

    def __call__(self, shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
        """Draw one."""
        lengths = zip("BHNM", (shape.batch, shape.heads, shape.n, shape.n_k), strict=True)
        return {"bias": rng.standard_normal([n if x in self.axes else 1 for x, n in lengths])}


@dataclass(frozen=True)
class Fixed:
    """An option that is a number, a pair or a text."""

    name: str
    value: Any

    def __call__(self, shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
        """Give it."""
        return {self.name: self.value}


def slopes(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Slopes of 2^−2, 2^−3, …, a head each: of every precision."""
    return {"alibi_slopes": 2.0 ** -(2.0 + np.arange(shape.heads) % 10)}


def sinks(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """A sink's logit for every head, some as large as the row's sum, some small."""
    return {"sinks": np.resize([2.0, -1.5, 4.0, 0.5], shape.heads) + rng.uniform(-0.25, 0.25, shape.heads)}


def large_sinks(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Sinks' logits that overflow an exponential."""
    return {"sinks": np.resize([100.0, -200.0], shape.heads)}


def lengths(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Keys of every sequence: all, one, and others between."""
    found = rng.integers(1, shape.n_k, size=shape.batch, endpoint=True)
    found[0] = max(1, shape.n_k - 3)
    return {"lengths": found.astype(np.int64)}


def packed(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Sequences of several lengths, one of them of one query, one after another."""
    ends = [np.unique(np.minimum([0, 1, n // 4, n // 2 + 3, n], n)) for n in (shape.n, shape.n_k)]
    many = min(len(x) for x in ends)
    ends = [np.append(x[: many - 1], x[-1]).astype(np.int64) for x in ends]
    return {"cu_seqlens_q": ends[0], "cu_seqlens_k": ends[1]}


def dropped(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Dropout of a quarter, by a mask."""
    return {"keep": rng.random((shape.batch, shape.heads, shape.n, shape.n_k)) >= 0.25, "dropout": 0.25}


def listed(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Up to 12 keys a query, none twice, some places empty."""
    lead = (shape.batch, shape.kv_heads, shape.n)
    order = rng.random((*lead, shape.n_k)).argsort(axis=-1)[..., : min(12, shape.n_k)]
    return {"indices": np.where((rng.random(order.shape) < 0.2) & (np.arange(order.shape[-1]) > 0), -1, order)}


def blocks(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Half of the blocks of 16, and always the diagonal one and the first."""
    rows, columns = -(-shape.n // 16), -(-shape.n_k // 16)
    seen = rng.random((shape.heads, rows, columns)) < 0.4
    seen[..., 0] = True
    return {"blocks": seen | np.eye(rows, columns, dtype=np.bool_), "block_size": 16}


def upstream_of_lse(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """An upstream gradient of the log-sum-exps."""
    return {"dlse": rng.standard_normal((shape.batch, shape.heads, shape.n))}


BOTTOM = Fixed("align", "bottom-right")


def _case(
    name: str, shape: Shape, names: str, *give: Given, causal: bool = True, profile: str = "standard",
    gradients: bool = True, kind: type[Optioned] = Optioned, **changed: Any,
) -> Case:  # fmt: skip
    content = kind(causal=causal, give=give, names=frozenset(names.split()), **changed)
    return Case(name, "option", shape, content, profile=profile, gradients=gradients)


BATCHES, GROUPED = Shape(70, batch=2, heads=3), Shape(150, d=32, heads=4, kv_heads=2)
OPTIONS = (
    _case("bias", BATCHES, "bias", Bias(), profile="quick"),
    _case("bias shared by batches, full", Shape(40, 55, batch=3, heads=2), "bias", Bias("HNM"), causal=False),
    _case("bias shared by heads", Shape(70, batch=2, heads=4, kv_heads=2), "bias", Bias("BNM")),
    _case("bias shared by queries", BATCHES, "bias", Bias("HM"), causal=False),
    _case("bias of n = 300", Shape(300, d=32, heads=1), "bias", Bias()),
    _case("ALiBi", GROUPED, "alibi", slopes, profile="quick"),
    _case("ALiBi, full", Shape(70, heads=3), "alibi", slopes, causal=False),
    _case("ALiBi, the last 7 queries", Shape(7, 130, heads=4), "alibi align", slopes, BOTTOM),
    _case("softcap 20, logits of deviation 16", BATCHES, "softcap", Fixed("softcap", 20.0), deviation=16.0,
          profile="quick"),
    _case("softcap 5", GROUPED, "softcap", Fixed("softcap", 5.0), deviation=3.0),
    _case("softcap 30, n = 400, full", Shape(400, heads=1), "softcap", Fixed("softcap", 30.0), causal=False,
          deviation=16.0),
    _case("window of 16", GROUPED, "window", Fixed("window", (15, 0)), profile="quick"),
    _case("window of one key", BATCHES, "window", Fixed("window", (0, 0))),
    _case("window to both sides, full", Shape(150, batch=2), "window", Fixed("window", (20, 9)), causal=False),
    _case("window of 128, n = 500", Shape(500, d=32, heads=1), "window", Fixed("window", (127, 0))),
    _case("window of 64, the last 5 queries", Shape(5, 300), "window align", Fixed("window", (63, 0)), BOTTOM),
    _case("sinks", Shape(70, batch=2, heads=4, kv_heads=2), "sinks", sinks, profile="quick"),
    _case("sinks with a window", GROUPED, "sinks window", sinks, Fixed("window", (31, 0))),
    _case("sinks of logits 100 and −200", BATCHES, "sinks", large_sinks, causal=False),
    _case("key padding", Shape(70, batch=3), "lengths", lengths, causal=False, profile="quick"),
    _case("key padding, causal, grouped", Shape(130, batch=3, heads=4, kv_heads=2), "lengths", lengths),
    _case("packed sequences, causal", GROUPED, "packed", packed, profile="quick"),
    _case("packed sequences, other lengths of keys", Shape(90, 170), "packed", packed, causal=False),
    *(
        _case(f"{n} of the last queries, {n_k} keys", Shape(n, n_k, d=32, batch=2, heads=4, kv_heads=2), "align",
              BOTTOM, profile="quick" if n == 3 else "standard")
        for n, n_k in ((2, 65), (3, 129), (5, 300), (8, 1025))
    ),
    _case("200 of the last queries, 333 keys", Shape(200, 333), "align", BOTTOM),
    _case("dropout", BATCHES, "dropout", dropped, profile="quick"),
    _case("dropout, full, grouped", Shape(90, 140, heads=4, kv_heads=2), "dropout", dropped, causal=False),
    _case("given indices", Shape(90, batch=2, heads=4, kv_heads=2), "indices", listed, causal=False, profile="quick"),
    _case("given indices, n = 300", Shape(300, heads=1), "indices", listed, causal=False),
    _case("given blocks", Shape(100, heads=3), "blocks", blocks, causal=False, profile="quick"),
    _case("given blocks, causal, n = 300", Shape(300, heads=1), "blocks", blocks),
    _case("pages, one query", Shape(1, 130, d=32, batch=3, heads=4, kv_heads=2), "paged lengths", causal=False,
          gradients=False, kind=Paged, profile="quick"),
    _case("pages, 6 queries", Shape(6, 90, batch=2), "paged lengths", causal=False, gradients=False, kind=Paged),
    _case("gradient of the log-sum-exps", GROUPED, "dlse", upstream_of_lse, profile="quick"),
    _case("gradient of the log-sum-exps, full", Shape(300, 200, heads=1), "dlse", upstream_of_lse, causal=False),
    _case("gradient of the log-sum-exps, with sinks", Shape(70, heads=3), "dlse sinks", sinks, upstream_of_lse),
    _case("softcap, ALiBi, sinks and a window", Shape(90, batch=2, heads=4, kv_heads=2), "softcap alibi sinks window",
          Fixed("softcap", 20.0), slopes, sinks, Fixed("window", (31, 0)), deviation=8.0),
    _case("bias and dropout, n = 200", Shape(200, heads=2), "bias dropout", Bias("HNM"), dropped),
)  # fmt: skip
