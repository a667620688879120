"""Cases of exact attention in which options meet: every pair of their values in some case (ours)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.testing.conformance.adapters import MEMORY
from refattn.testing.conformance.covering import covering
from refattn.testing.conformance.dense_cases import Attention
from refattn.testing.conformance.operation import Case, Problem, Shape


@dataclass(frozen=True)
class RandomMask:
    """Half of the keys, and always the first; of its own for every batch, for every head, or for both."""

    per_batch: bool = False
    per_head: bool = False

    def __call__(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw one, with the axes (B, H, n_q, n_k), or the last two."""
        lead = (shape.batch if self.per_batch else 1, shape.heads if self.per_head else 1)
        mask = rng.random((*lead, shape.n, shape.n_k)) < 0.5
        mask[..., 0] = True
        return mask if self.per_batch or self.per_head else mask[0, 0]


def padded_per_batch(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A length of its own for every batch, at least one; the keys beyond it are hidden."""
    lengths = rng.integers(1, shape.n_k, size=shape.batch, endpoint=True)
    lengths[0] = max(1, shape.n_k // 2)
    mask = np.arange(shape.n_k) < lengths[:, None, None, None]
    return np.broadcast_to(mask, (shape.batch, 1, shape.n, shape.n_k)).copy()


@dataclass(frozen=True)
class FarBelow(Attention):
    """All logits about −57,344: below what running maxima start from that are not −∞. The numbers are exact."""

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one: small whole numbers, and one entry that is the same for all keys."""
        problem = super().__call__(shape, seed)
        q, k = (np.round(problem.arrays[x]) for x in ("q", "k"))
        q[..., 0], k[..., 0] = -57344 / (512 * problem.options["scale"]), 512
        return replace(problem, arrays={**problem.arrays, "q": q, "k": k})


MASKS: dict[str, RandomMask | None] = {
    "no mask": None,
    "mask": RandomMask(),
    "mask per batch": RandomMask(per_batch=True),
    "mask per head": RandomMask(per_head=True),
    "mask per batch and head": RandomMask(per_batch=True, per_head=True),
}
LENGTHS = {"square": (37, 37), "more keys": (35, 70), "more queries": (66, 31)}
SCALES = {"1/√d": None, "scale 0.125": 0.125, "scale −0.25": -0.25, "scale 0": 0.0}
CONTENTS: dict[str, tuple[type[Attention], dict[str, Any]]] = {
    "normal": (Attention, {}),
    "logits near −57,344": (FarBelow, {}),
    "deviation 16": (Attention, {"deviation": 16.0}),
    "values of 10³": (Attention, {"value_size": 1e3}),
}
HEADS = {"2 heads": (2, 2), "1 head": (1, 1), "4 on 2": (4, 2), "4 on 1": (4, 1)}
WIDTHS = {"d 16": (16, 16), "d 64": (64, 64), "d_v 24": (16, 24)}

OPTIONS: dict[str, list[Any]] = {
    "mask": list(MASKS),
    "lengths": list(LENGTHS),
    "causal": ["full", "causal"],
    "scale": list(SCALES),
    "content": list(CONTENTS),
    "heads": list(HEADS),
    "batch": [3, 1],
    "widths": list(WIDTHS),
    "memory": list(MEMORY),
}
FORBIDDEN = (
    *((("causal", "causal"), ("lengths", x)) for x in ("more keys", "more queries")),  # which keys come first is open
    *((("mask", x), ("batch", 1)) for x in ("mask per batch", "mask per batch and head")),
    *((("mask", x), ("heads", "1 head")) for x in ("mask per head", "mask per batch and head")),
    (("content", "logits near −57,344"), ("scale", "scale 0")),
)


def crossed(row: dict[str, Any]) -> Case:
    """Return the case of one combination."""
    kind, changed = CONTENTS[row["content"]]
    (n, n_k), (n_heads, n_kv), (d, d_v) = LENGTHS[row["lengths"]], HEADS[row["heads"]], WIDTHS[row["widths"]]
    content = kind(causal=row["causal"] == "causal", scale=SCALES[row["scale"]], mask=MASKS[row["mask"]], **changed)
    usual = {x: values[0] for x, values in OPTIONS.items()}
    said = [str(row[x]) if x != "batch" else f"batch of {row[x]}" for x in OPTIONS if row[x] != usual[x]]
    shape = Shape(n, n_k, d, d_v, row["batch"], n_heads, n_kv)
    tags = frozenset({"mask-batched"}) if " per " in row["mask"] else frozenset()
    return Case(", ".join(["crossed", *said]), "crossed", shape, content, tags, "standard", memory=row["memory"])


CROSSED = tuple(crossed(row) for row in covering(OPTIONS, FORBIDDEN))
