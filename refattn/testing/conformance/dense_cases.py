"""The grid of cases for exact attention: ordinary, adversarial, degenerate and real (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.testing.conformance.operation import Arrays, Case, Problem
from refattn.testing.inputs import attention_inputs, rope_structured
from refattn.testing.real_heads import RealHeads, load_real_heads

Build = Callable[[int, int], Problem]


def attention(
    d: int = 16,
    *,
    heads: tuple[int, int, int] = (1, 2, 2),
    causal: bool = True,
    scale: float | None = None,
    mask: Callable[[int, int, np.random.Generator], NDArray[np.bool_]] | None = None,
    keys: Callable[[int], int] = lambda n: n,
    value_size: float = 1.0,
    key_offset: float = 0.0,
    key_sign: float = 1.0,
    **options: Any,
) -> Build:
    """Return a builder of problems with inputs of `attention_inputs`; `heads` is (B, H, H_kv)."""
    batch, n_heads, n_kv = heads

    def build(n: int, seed: int) -> Problem:
        n_k = keys(n)
        q, k, v = attention_inputs(max(n, n_k), d, seed=seed, lead=(batch, n_heads), kv_lead=(batch, n_kv), **options)
        q, k, v = q[..., :n, :], key_sign * k[..., :n_k, :] + key_offset, v[..., :n_k, :] * value_size
        rng = np.random.default_rng([seed, 3])
        given = {
            "causal": causal,
            "scale": 1 / math.sqrt(d) if scale is None else scale,
            "mask": None if mask is None else mask(n, n_k, rng),
        }
        return Problem({"q": q, "k": k, "v": v}, given, seed=seed)

    return build


def random_mask(n: int, n_k: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Half of the keys, and always the first."""
    mask = rng.random((n, n_k)) < 0.5
    mask[:, 0] = True
    return mask


def padded(n: int, n_k: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """All but the last quarter of the keys."""
    return np.broadcast_to(np.arange(n_k) < n_k - n_k // 4, (n, n_k)).copy()


def empty_rows(n: int, n_k: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Every third query, from the first, sees nothing."""
    mask = random_mask(n, n_k, rng)
    mask[::3] = False
    return mask


def rope(n: int, seed: int) -> Problem:
    """Rotary embeddings of contents constant within segments."""
    q, k, v, _ = rope_structured(n, 32, starts=min(4, n), seed=seed, deviation=3.0, lead=(1, 2))
    return Problem({"q": q, "k": k, "v": v}, {"causal": True, "scale": 1 / math.sqrt(32), "mask": None}, seed=seed)


@cache
def _heads() -> RealHeads:
    return load_real_heads(dtype=np.float64)


def real_arrays(layer: int, n: int, seed: int) -> Arrays:
    """Return n consecutive positions of the shipped heads of one layer, from a random one on."""
    real = _heads()
    first = int(np.random.default_rng([seed, 4]).integers(real.q.shape[-2] - n + 1))
    rows = slice(first, first + n)
    return {x: np.array(getattr(real, x)[layer : layer + 1, :, rows], np.float64) for x in ("q", "k", "v")}


def real_layer(layer: int) -> Build:
    """Three query heads of SmolLM2-135M and the key-value head they share."""

    def build(n: int, seed: int) -> Problem:
        return Problem(
            real_arrays(layer, n, seed), {"causal": True, "scale": 1 / math.sqrt(64), "mask": None}, seed=seed
        )

    return build


CASES = (
    *(Case(f"causal, n = {n}", "ordinary", n, attention()) for n in (2, 3, 16, 63, 64, 65, 127, 200)),
    *(Case(f"full, n = {n}", "ordinary", n, attention(causal=False)) for n in (5, 64, 97)),
    Case("causal, d = 64", "ordinary", 80, attention(64)),
    Case("causal, d = 128", "ordinary", 33, attention(128)),
    Case("causal, d_v ≠ d", "ordinary", 33, attention(16, d_v=24)),
    Case("full, d_v ≠ d", "ordinary", 20, attention(24, d_v=8, causal=False)),
    Case("batch of 3", "ordinary", 17, attention(heads=(3, 2, 2))),
    Case("grouped heads, 4 on 2", "ordinary", 33, attention(heads=(2, 4, 2))),
    Case("grouped heads, 6 on 2, full", "ordinary", 24, attention(heads=(1, 6, 2), causal=False)),
    Case("one key-value head for 4", "ordinary", 33, attention(heads=(1, 4, 1))),
    Case("scale given", "ordinary", 33, attention(scale=0.11)),
    Case("scale given, d = 64, full", "ordinary", 40, attention(64, scale=0.25, causal=False)),
    Case("more keys than queries, full", "ordinary", 19, attention(causal=False, keys=lambda n: 2 * n + 3)),
    Case("more queries than keys, full", "ordinary", 40, attention(causal=False, keys=lambda n: n // 2 + 1)),
    Case("mask: random", "ordinary", 33, attention(causal=False, mask=random_mask)),
    Case("mask: random and causal", "ordinary", 33, attention(mask=random_mask)),
    Case("mask: padded keys", "ordinary", 32, attention(causal=False, mask=padded)),
    Case("logits of deviation 4", "adversarial", 65, attention(deviation=4.0)),
    Case("logits of deviation 16", "adversarial", 65, attention(deviation=16.0)),
    Case("logits of 10⁴", "adversarial", 48, attention(deviation=1e4)),
    Case("logits of 10⁴, full", "adversarial", 48, attention(deviation=1e4, causal=False)),
    Case("one-hot, logits 0 and 10⁴", "adversarial", 40, attention(kind="one-hot", deviation=1e4)),
    Case("one-hot, logits 0 and 30", "adversarial", 40, attention(kind="one-hot", deviation=30.0)),
    Case("all logits equal to 200", "adversarial", 40, attention(4, kind="constant", deviation=200.0)),
    Case("all logits below −100", "adversarial", 40, attention(4, kind="constant", deviation=200.0, key_sign=-1.0)),
    Case("tiny logits", "adversarial", 40, attention(deviation=1e-3)),
    Case("keys with a common offset", "adversarial", 40, attention(key_offset=8.0)),
    Case("values of 10³", "adversarial", 40, attention(value_size=1e3)),
    Case("rotary, four segments", "adversarial", 65, rope),
    Case("mask: empty rows", "degenerate", 20, attention(causal=False, mask=empty_rows)),
    Case("mask: empty rows, causal, grouped", "degenerate", 20, attention(heads=(1, 4, 2), mask=empty_rows)),
    Case("n = 1", "degenerate", 1, attention()),
    Case("n = 1, full", "degenerate", 1, attention(causal=False)),
    Case("d = 1", "degenerate", 21, attention(1)),
    Case("d = 3, d_v = 1", "degenerate", 21, attention(3, d_v=1)),
    Case("one head, one batch", "degenerate", 21, attention(heads=(1, 1, 1))),
    *(Case(f"real heads, group {layer}", "real", 192, real_layer(layer)) for layer in range(5)),
)
