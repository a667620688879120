"""The grid of cases for exact attention: ordinary, adversarial, degenerate and real (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from refattn.testing.conformance.operation import Arrays, Case, Problem, Shape
from refattn.testing.inputs import attention_inputs, rope_structured
from refattn.testing.real_heads import RealHeads, load_real_heads

Mask = Callable[[Shape, np.random.Generator], NDArray[np.bool_]]


@dataclass(frozen=True)
class Attention:
    """Problems with inputs of `attention_inputs`, changed as said."""

    causal: bool = True
    scale: float | None = None
    mask: Mask | None = None
    kind: str = "normal"
    deviation: float = 1.0
    value_size: float = 1.0
    key_offset: float = 0.0
    key_sign: float = 1.0

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        n, n_k = shape.n, shape.n_k
        q, k, v = attention_inputs(
            max(n, n_k), shape.d, seed=seed, lead=(shape.batch, shape.heads), kv_lead=(shape.batch, shape.kv_heads),
            d_v=shape.d_v, kind=self.kind, deviation=self.deviation,
        )  # fmt: skip
        k, v = self.key_sign * k[..., :n_k, :] + self.key_offset, v[..., :n_k, :] * self.value_size
        rng = np.random.default_rng([seed, 3])
        given = {
            "causal": self.causal,
            "scale": 1 / math.sqrt(shape.d) if self.scale is None else self.scale,
            "mask": None if self.mask is None else self.mask(shape, rng),
        }
        return Problem({"q": q[..., :n, :], "k": k, "v": v}, given, seed=seed)

    @property
    def tags(self) -> frozenset[str]:
        """Whether it is causal, has a mask, a scale, rows that see nothing."""
        said = {
            "mask": self.mask is not None,
            "scale": self.scale is not None,
            "empty-rows": self.mask is empty_rows,
        }
        return frozenset({"causal" if self.causal else "full", *(name for name, there in said.items() if there)})


def random_mask(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Half of the keys, and always the first."""
    mask = rng.random((shape.n, shape.n_k)) < 0.5
    mask[:, 0] = True
    return mask


def padded(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """All but the last quarter of the keys."""
    return np.broadcast_to(np.arange(shape.n_k) < shape.n_k - shape.n_k // 4, (shape.n, shape.n_k)).copy()


def empty_rows(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Every third query, from the first, sees nothing."""
    mask = random_mask(shape, rng)
    mask[::3] = False
    return mask


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings of contents constant within segments, causal."""

    tags: frozenset[str] = frozenset({"causal"})

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one; key-value heads are the first of each group."""
        lead = (shape.batch, shape.heads)
        q, k, v, _ = rope_structured(
            shape.n, shape.d, starts=min(4, shape.n), seed=seed, deviation=3.0, lead=lead, d_v=shape.d_v
        )
        group = shape.heads // shape.kv_heads
        given = {"causal": True, "scale": 1 / math.sqrt(shape.d), "mask": None}
        return Problem({"q": q, "k": k[:, ::group], "v": v[:, ::group]}, given, seed=seed)

    def refuses(self, shape: Shape) -> str:
        """Why there is none of a shape."""
        return f"rotary embeddings have an even d, not {shape.d}" if shape.d % 2 else ""


@cache
def _heads() -> RealHeads:
    return load_real_heads(dtype=np.float64)


def real_arrays(layer: int, n: int, seed: int) -> Arrays:
    """Return n consecutive positions of the shipped heads of one layer, from a random one on."""
    real = _heads()
    first = int(np.random.default_rng([seed, 4]).integers(real.q.shape[-2] - n + 1))
    rows = slice(first, first + n)
    return {x: np.array(getattr(real, x)[layer : layer + 1, :, rows], np.float64) for x in ("q", "k", "v")}


REAL = Shape(192, d=64, heads=3, kv_heads=1)
"""Three query heads of SmolLM2-135M and the key-value head they share."""


@dataclass(frozen=True)
class Real:
    """The shipped heads of one layer, causal."""

    layer: int
    tags: frozenset[str] = frozenset({"causal"})
    fixed: Shape = REAL  # all of it but n

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        given = {"causal": True, "scale": 1 / math.sqrt(64), "mask": None}
        return Problem(real_arrays(self.layer, shape.n, seed), given, seed=seed)

    def refuses(self, shape: Shape) -> str:
        """Why there is none of a shape."""
        return too_long(shape)


def too_long(shape: Shape) -> str:
    """Why real heads have no such length, if they have not."""
    most = _heads().q.shape[-2]
    return f"real heads have {most} positions, not {shape.n}" if shape.n > most else ""


def case(
    name: str,
    kind: str,
    n: int,
    content: Callable[[Shape, int], Problem] = Attention(),
    *,
    heads: tuple[int, int, int] = (1, 2, 2),
    profile: str = "quick",
    gradients: bool = True,
    own_tags: frozenset[str] = frozenset(),
    memory: str = "contiguous",
    **sizes: int,
) -> Case:
    """Return a case; `heads` is (B, H, H_kv), `sizes` are n_k, d and d_v."""
    batch, n_heads, n_kv = heads
    shape = Shape(n, batch=batch, heads=n_heads, kv_heads=n_kv, **sizes)
    return Case(name, kind, shape, content, own_tags, profile, gradients, memory)


FULL = Attention(causal=False)
CASES = (
    *(case(f"causal, n = {n}", "ordinary", n) for n in (2, 3, 16, 63, 64, 65, 127, 200)),
    *(case(f"full, n = {n}", "ordinary", n, FULL) for n in (5, 64, 97)),
    case("causal, d = 64", "ordinary", 80, d=64),
    case("causal, d = 128", "ordinary", 33, d=128),
    case("causal, d_v ≠ d", "ordinary", 33, d_v=24),
    case("full, d_v ≠ d", "ordinary", 20, FULL, d=24, d_v=8),
    case("batch of 3", "ordinary", 17, heads=(3, 2, 2)),
    case("grouped heads, 4 on 2", "ordinary", 33, heads=(2, 4, 2)),
    case("grouped heads, 6 on 2, full", "ordinary", 24, FULL, heads=(1, 6, 2)),
    case("one key-value head for 4", "ordinary", 33, heads=(1, 4, 1)),
    case("scale given", "ordinary", 33, Attention(scale=0.11)),
    case("scale given, d = 64, full", "ordinary", 40, Attention(causal=False, scale=0.25), d=64),
    case("more keys than queries, full", "ordinary", 19, FULL, n_k=41),
    case("more queries than keys, full", "ordinary", 40, FULL, n_k=21),
    case("mask: random", "ordinary", 33, Attention(causal=False, mask=random_mask)),
    case("mask: random and causal", "ordinary", 33, Attention(mask=random_mask)),
    case("mask: padded keys", "ordinary", 32, Attention(causal=False, mask=padded)),
    case("logits of deviation 4", "adversarial", 65, Attention(deviation=4.0)),
    case("logits of deviation 16", "adversarial", 65, Attention(deviation=16.0)),
    case("logits of 10⁴", "adversarial", 48, Attention(deviation=1e4)),
    case("logits of 10⁴, full", "adversarial", 48, Attention(deviation=1e4, causal=False)),
    case("one-hot, logits 0 and 10⁴", "adversarial", 40, Attention(kind="one-hot", deviation=1e4)),
    case("one-hot, logits 0 and 30", "adversarial", 40, Attention(kind="one-hot", deviation=30.0)),
    case("all logits equal to 200", "adversarial", 40, Attention(kind="constant", deviation=200.0), d=4),
    case("all logits below −100", "adversarial", 40, Attention(kind="constant", deviation=200.0, key_sign=-1.0), d=4),
    case("tiny logits", "adversarial", 40, Attention(deviation=1e-3)),
    case("keys with a common offset", "adversarial", 40, Attention(key_offset=8.0)),
    case("values of 10³", "adversarial", 40, Attention(value_size=1e3)),
    case("rotary, four segments", "adversarial", 65, Rope(), d=32),
    case("mask: empty rows", "degenerate", 20, Attention(causal=False, mask=empty_rows)),
    case("mask: empty rows, causal, grouped", "degenerate", 20, Attention(mask=empty_rows), heads=(1, 4, 2)),
    case("n = 1", "degenerate", 1),
    case("n = 1, full", "degenerate", 1, FULL),
    case("d = 1", "degenerate", 21, d=1),
    case("d = 3, d_v = 1", "degenerate", 21, d=3, d_v=1),
    case("one head, one batch", "degenerate", 21, heads=(1, 1, 1)),
    *(case(f"real heads, group {g}", "real", 192, Real(g), heads=(1, 3, 1), d=64) for g in range(5)),
)
