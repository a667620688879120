"""Mistakes of kernels that go over keys and queries in tiles, as what they do to whole matrices (ours).

They show where a result needs more than one tile. A kernel's tile is not known: each mistake is tried with the usual
ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray

TILES = (32, 64, 128)
_ORDER = {"second": 1, "third": 2, "last": -1}

FORWARD: dict[str, tuple[str, int, int]] = {}
BACKWARD: dict[str, tuple[str, int, int]] = {}
FAULTS: dict[str, str] = {}


def _known(table: dict[str, tuple[str, int, int]], name: str, kind: str, tile: int, place: int, sentence: str) -> None:
    table[name], FAULTS[name] = (kind, tile, place), sentence


for _tile in TILES:
    for _word, _place in _ORDER.items():
        _known(FORWARD, f"{_word} tile of {_tile} keys skipped", "skipped", _tile, _place,
               f"no query sees the keys of the {_word} tile of {_tile}")  # fmt: skip
    for _word in ("second", "third"):
        _known(FORWARD, f"accumulator not rescaled in the {_word} tile of {_tile}", "not rescaled", _tile,
               _ORDER[_word], "what was added up before keeps the scale of the maximum before")  # fmt: skip
        _known(FORWARD, f"{_word} tile of {_tile} keys counted twice", "twice", _tile, _ORDER[_word],
               f"the keys of the {_word} tile of {_tile} are added up twice")  # fmt: skip
    _known(FORWARD, f"last tile of {_tile} keys not masked", "padded", _tile, -1,
           f"keys are counted beyond the last, as if of logit 0, up to a multiple of {_tile}")  # fmt: skip
    _known(BACKWARD, f"dq without the last tile of {_tile} keys", "dq", _tile, -1,
           f"what the last tile of {_tile} keys gives to dq is lost")  # fmt: skip
    _known(BACKWARD, f"dk and dv without the last tile of {_tile} queries", "dk", _tile, -1,
           f"what the last tile of {_tile} queries gives to dk and dv is lost")  # fmt: skip
for _parts in (2, 4):
    _known(FORWARD, f"{_parts} splits of the keys merged without their weights", "splits", _parts, 0,
           f"the {_parts} parts of the keys count alike, whatever their sums of exponentials")  # fmt: skip


def span(n: int, tile: int, place: int) -> slice:
    """Return a tile of n positions, empty where there are not so many; the last may be partial."""
    count = -(-n // tile)
    start = (count + place if place < 0 else place) * tile
    return slice(start, min(start + tile, n)) if count > 1 else slice(0, 0)


def weights(logits: FloatArray, allowed: NDArray[np.bool_], fault: str) -> FloatArray:
    """Return the weights that a mistake of the forward gives."""
    kind, tile, place = FORWARD[fault]
    n = logits.shape[-1]
    hidden = np.where(allowed, logits, -np.inf)
    if kind == "skipped":
        hidden[..., span(n, tile, place)] = -np.inf
    if kind == "splits":
        parts = [_normalised(hidden[..., part]) for part in np.array_split(np.arange(n), tile)]
        seen = [part.any(axis=-1, keepdims=True) for part in parts]
        return np.asarray(np.concatenate(parts, axis=-1) / np.maximum(sum(x.astype(logits.dtype) for x in seen), 1))
    factor = np.ones_like(hidden)
    if kind == "twice":
        factor[..., span(n, tile, place)] = 2
    if kind == "not rescaled" and (start := span(n, tile, place).start):
        before = _largest(hidden[..., :start])
        after = np.maximum(before, _largest(hidden[..., span(n, tile, place)]))
        grown = np.exp(np.where(np.isfinite(before), after - before, 0))
        factor[..., :start] = np.minimum(grown, np.finfo(logits.dtype).max)
    extra = None
    if kind == "padded":
        largest = _largest(hidden)
        extra = -n % tile * np.exp(np.minimum(-np.where(np.isfinite(largest), largest, 0), 80))
    return _normalised(hidden, factor, extra)


def _largest(hidden: FloatArray) -> FloatArray:
    return np.asarray(hidden.max(axis=-1, keepdims=True, initial=-np.inf))


def _normalised(hidden: FloatArray, factor: FloatArray | None = None, extra: FloatArray | None = None) -> FloatArray:
    largest = _largest(hidden)
    found = np.exp(hidden - np.where(np.isneginf(largest), 0, largest))
    found = found if factor is None else found * factor
    total = found.sum(axis=-1, keepdims=True)
    total = np.where(total > 0, total + (0 if extra is None else extra), total)
    return np.asarray(np.divide(found, total, out=np.zeros_like(found), where=total > 0))


def lost(dlogits: FloatArray, fault: str | None, kind: str) -> FloatArray:
    """Return the gradient of the logits without the tile that a mistake of the backward loses for dq, or for dk."""
    if fault not in BACKWARD or BACKWARD[fault][0] != kind:
        return dlogits
    _, tile, place = BACKWARD[fault]
    kept = dlogits.copy()
    if kind == "dq":
        kept[..., span(kept.shape[-1], tile, place)] = 0
    else:
        kept[..., span(kept.shape[-2], tile, place), :] = 0
    return kept
