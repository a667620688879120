"""What a way of computing conv attention costs, by measured constants: the choice between the paths (ours).

The time of a head is a sum of amounts of work, each times a constant of `SECONDS`. For the block transform of length B,
with p = n/B + k − 1 pairs and w the width of V rounded up to even, the work is

    multiply     ½ (n/B) p (B + 1) w           a kernel's spectrum times a piece's, both halves of the frequencies
    transform    (p + n/B) 2B w log₂(2B)       with moving them from rows to columns to frequencies
    spill        the same, where eight columns at once do not fit in a core's cache
    kernels      ½ k n log₂(2B)                exponentials, chunks and sums of the kernels
    pieces       p + n/B + k + B/32            tasks handed to a thread
    call         1                             what a transform costs at any size

and for the direct product

    product      ½ n² (d + 32)                 weights times values; gathering a logit and its exponential cost 32
    tiles        (n/64) (1 + n/1024)           tasks, and steps inside them

Float64 counts double. `refattn.laboratory.cost_model` measures the constants; the choice needs their ratios only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from refattn._validation import as_count, as_float_dtype, as_option

PATHS = ("block transform", "direct")


@dataclass(frozen=True)
class Plan:
    """How the fast path computes one head.

    Parameters
    ----------
    path : {"block transform", "direct"}
        Which way.
    block : int, optional
        Block length B ≥ 1 of the block transform; 0 for the direct product, which has none.

    Raises
    ------
    TypeError, ValueError
        Unknown path, or a block that does not go with it.

    Notes
    -----
    Memory O(1). Source: ours.

    Examples
    --------
    >>> Plan("block transform", 1024)
    Plan(path='block transform', block=1024)
    """

    path: str
    block: int = 0

    def __post_init__(self) -> None:
        as_option("path", self.path, PATHS)
        if self.path == "direct":
            as_count("block", self.block, least=0, most=0, most_is="the direct product has no blocks")
        else:
            as_count("block", self.block, least=1)


SECONDS = {
    "multiply": 9.3e-11,
    "transform": 8.8e-11,
    "spill": 4.5e-11,
    "kernels": 4.3e-10,
    "pieces": 2.8e-05,
    "call": 3.6e-04,
    "product": 1.3e-12,
    "tiles": 5.8e-05,
}
"""Seconds for one unit of work, in float32 on two threads, as `calibrate` measured them."""

_BLOCKS = tuple(1 << power for power in range(5, 16))
_CACHED = 4096 * 4
"""Largest block length times bytes of a number whose transforms stay in a core's cache."""


def block_transform_work(n: int, k: int, d: int, dtype: Any, block: int) -> dict[str, float]:
    """Return the amounts of work of the block transform of one head."""
    size = np.dtype(dtype).itemsize
    width, blocks, rounds = d + d % 2, -(-n // block), math.log2(2 * block)
    pairs = blocks + k - 1
    moved = (pairs + blocks) * 2 * block * width
    work = {
        "multiply": 0.5 * blocks * pairs * (block + 1) * width,
        "transform": moved * rounds,
        "spill": moved * rounds if block * size > _CACHED else 0.0,
        "kernels": 0.5 * k * n * rounds,
        "pieces": (pairs + blocks + k + block / 32) * 4 / size,
        "call": 4 / size,
    }
    return {kind: amount * size / 4 for kind, amount in work.items()}


def direct_work(n: int, d: int, dtype: Any) -> dict[str, float]:
    """Return the amounts of work of the direct product of one head."""
    size = np.dtype(dtype).itemsize
    work = {"product": 0.5 * n * n * (d + 32), "tiles": n / 64 * (1 + n / 1024) * 4 / size}
    return {kind: amount * size / 4 for kind, amount in work.items()}


def estimated_seconds(work: dict[str, float]) -> float:
    """Return the time that so much work takes, by `SECONDS`."""
    return sum(SECONDS[kind] * amount for kind, amount in work.items())


def choose_plan(n: int, k: int, d: int, dtype: Any) -> Plan:
    """Return the cheapest plan for one head, by the model.

    Parameters
    ----------
    n, k, d : int
        Length, segments, width of V.
    dtype : dtype_like
        float32 or float64.

    Returns
    -------
    Plan
        The path, and the block length if it has one: a power of two from 32 to 32,768.

    Raises
    ------
    TypeError, ValueError
        A number is not a count, or `dtype` is not a dtype.

    Notes
    -----
    Time O(log n): every power of two is estimated, once for equal arguments. The constants were fitted to measurements
    with one machine's cores; the choice is the same on every machine. Source: ours.

    Examples
    --------
    >>> choose_plan(128, 4, 64, "float32").path, choose_plan(65_536, 16, 64, "float32").path
    ('direct', 'block transform')
    """
    n, k, d = as_count("n", n, least=1), as_count("k", k, least=1), as_count("d", d, least=1)
    return _cheapest(n, k, d, as_float_dtype("dtype", dtype))


@lru_cache(maxsize=1024)
def _cheapest(n: int, k: int, d: int, dtype: np.dtype[Any]) -> Plan:
    seconds = {
        Plan("block transform", block): estimated_seconds(block_transform_work(n, k, d, dtype, block))
        for block in _BLOCKS
        if block < max(2 * n, 2 * _BLOCKS[0])
    }
    seconds[Plan("direct")] = estimated_seconds(direct_work(n, d, dtype))
    return min(seconds, key=seconds.__getitem__)


def block_transform_bytes(n: int, k: int, d: int, dtype: Any, block: int) -> int:
    """Estimated memory of the block transform of one head beyond input and output."""
    width, blocks = d + d % 2, -(-n // block)
    pairs = blocks + k
    return int(np.dtype(dtype).itemsize * (pairs * (2 * block + 1) * width + 4 * k * n) + 80 * n)
