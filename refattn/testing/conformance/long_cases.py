"""Cases of exact attention that are long, and lengths at the edges of tiles (ours).

A kernel's faults live at its second and third tile, in its last partial one, and in the split over keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.testing.conformance.dense_cases import FULL, Attention, case, padded, random_mask
from refattn.testing.conformance.operation import Case, Problem, Shape

TILES = {16: 3, 32: 5, 64: 3, 128: 3, 256: 3, 512: 3}
"""Usual tiles, and an odd number of each: a length at a multiple of that tile and of no larger one."""


@dataclass(frozen=True)
class Slope(Attention):
    """Logits that rise along the keys by `rise`, so that every tile has another maximum; or fall."""

    rise: float = 60.0

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one: one entry of the keys is a ramp, and that of the queries is constant."""
        problem = super().__call__(shape, seed)
        q, k = problem.arrays["q"], problem.arrays["k"]
        q[..., 0] = 1 / problem.options["scale"] / 4
        k[..., 0] = np.linspace(0, 4 * self.rise, shape.n_k)
        return problem


def _lengths() -> list[Case]:
    """At, one below and one above a multiple of every tile, causal and full in turn."""
    found = []
    for tile, many in TILES.items():
        for place, n in enumerate((many * tile - 1, many * tile, many * tile + 1)):
            causal = (place + tile.bit_length()) % 2 == 0
            name = f"tiles of {tile}, n = {n}" + ("" if causal else ", full")
            content = Attention() if causal else FULL
            heads = (1, 2, 1) if n < 400 else (1, 1, 1)
            found.append(case(name, "tiles", n, content, heads=heads, d=32, profile="standard"))
    return found


def _with_width(d: int, sizes: dict[str, int]) -> dict[str, Any]:
    return {"d": d, **sizes}


def _case(name: str, n: int, content: Attention, heads: tuple[int, int, int] = (1, 1, 1), **sizes: int) -> Case:
    return case(name, "tiles", n, content, heads=heads, profile="standard", **_with_width(32, sizes))


def _long(name: str, n: int, content: Attention, heads: tuple[int, int, int] = (1, 1, 1), gradients: bool = False,
          **sizes: int) -> Case:  # fmt: skip
    return case(name, "long", n, content, heads=heads, profile="long", gradients=gradients, **_with_width(64, sizes))


RISING, FALLING = Slope(causal=False), Slope(causal=False, rise=-60.0)

LONG = (
    *_lengths(),
    _case("n = 1000, last tile partial", 1000, Attention()),
    _case("n = 2049", 2049, Attention(), d=64),
    _case("n = 4095, full", 4095, FULL, d=64),
    _case("n = 4096", 4096, Attention(), d=64),
    _case("129 queries, 1537 keys", 129, FULL, n_k=1537),
    _case("1000 queries, 257 keys", 1000, FULL, heads=(1, 4, 2), n_k=257),
    _case("40 queries, 4095 keys", 40, FULL, n_k=4095),
    _case("4095 queries, 40 keys", 4095, FULL, n_k=40),
    _case("one query, 100 keys", 1, FULL, heads=(2, 4, 2), n_k=100),
    _case("one query, 513 keys", 1, FULL, heads=(3, 4, 1), n_k=513),
    _case("one query, 1025 keys", 1, RISING, heads=(1, 2, 2), n_k=1025),
    _case("one query, 4096 keys", 1, FULL, heads=(1, 4, 2), n_k=4096, d=64),
    _case("one query, 4097 keys, logits falling", 1, FALLING, heads=(1, 2, 1), n_k=4097, d=64),
    _case("logits rising along the keys", 400, RISING),
    _case("logits falling along the keys", 400, FALLING),
    _case("logits rising, causal", 700, Slope()),
    _case("mask: padded keys, n = 700", 700, Attention(causal=False, mask=padded)),
    _case("mask: random, n = 600", 600, Attention(mask=random_mask)),
    _case("logits of deviation 4, n = 1300", 1300, Attention(deviation=4.0), heads=(1, 2, 1)),
    _long("n = 8193", 8193, Attention(), gradients=True),
    _long("n = 16385, full", 16385, FULL),
    _long("n = 65536", 65536, Attention()),
    _long("one query, 65537 keys", 1, FULL, heads=(1, 4, 2), n_k=65537),
    _long("one query, 262145 keys, logits rising", 1, RISING, n_k=262145),
    _long("129 queries, 65537 keys", 129, FULL, n_k=65537, gradients=True),
)
