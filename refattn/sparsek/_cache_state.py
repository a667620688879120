"""What a generation cache keeps of a sequence (slots, a ring, thresholds), and the checks of one that was stored.

For each of the F key-value heads, R = n_select + window rows (one if that is 0): the slots, then the window, position p
in row ``n_select + p mod window``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refattn._validation import FloatArray

Positions = NDArray[np.int64]

SPARE = 8
"""Room for thresholds at first, in multiples of ``n_select + 1``: enough for most scores."""


@dataclass
class CacheState:
    """Arrays of one sequence."""

    keys: FloatArray  # (F, R, d), rows of the pairs kept; zero where none is
    values: FloatArray  # (F, R, d_v)
    window_scores: NDArray[np.float64]  # (F, window), of the pairs in it
    used: Positions  # (F,), slots in use
    heap: Positions  # (F, n_select), slots in use as a heap, the worst first
    slot_positions: Positions  # (F, n_select), of the pair in each slot
    slot_scores: NDArray[np.float64]  # (F, n_select), of the same
    ones: NDArray[np.float64]  # (F, n_select + 1), scores at gate one as a heap
    interior: NDArray[np.float64]  # (F, room), those inside (0, 1); no room if gates are not soft
    sizes: Positions  # (F, 2), numbers of entries of the two
    sums: NDArray[np.float64]  # (F, 3), threshold, and the sum of the interior in two parts

    @classmethod
    def empty(
        cls, heads: int, n_select: int, window: int, d: int, d_v: int, dtype: DTypeLike, *, soft: bool
    ) -> CacheState:
        """Return the state before the first token."""
        rows = max(n_select + window, 1)
        sums = np.zeros((heads, 3))
        sums[:, 0] = -np.inf
        return cls(
            keys=np.zeros((heads, rows, d), dtype),
            values=np.zeros((heads, rows, d_v), dtype),
            window_scores=np.zeros((heads, window)),
            used=np.zeros(heads, np.int64),
            heap=np.zeros((heads, n_select), np.int64),
            slot_positions=np.zeros((heads, n_select), np.int64),
            slot_scores=np.zeros((heads, n_select)),
            ones=np.zeros((heads, n_select + 1 if soft else 0)),
            interior=np.zeros((heads, SPARE * (n_select + 1) if soft else 0)),
            sizes=np.zeros((heads, 2), np.int64),
            sums=sums,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def arrays(self) -> dict[str, FloatArray | Positions]:
        """Return the arrays by name, the thresholds' heaps without their room: the same for the same sequence."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, sizes in zip(("ones", "interior"), self.sizes.T, strict=True):
            room = self.ones.shape[1] if name == "ones" else int(sizes.max())
            live = np.arange(room) < sizes[:, None]
            found[name] = np.where(live, found[name][:, :room], 0)
        return found

    def make_room(self, entries: int) -> None:
        """Let the interior of every head hold as many entries, by doubling."""
        room = max(self.interior.shape[1], SPARE * self.ones.shape[1])
        while room < entries:
            room *= 2
        if room > self.interior.shape[1]:
            grown = np.zeros((len(self.interior), room))
            grown[:, : self.interior.shape[1]] = self.interior
            self.interior = grown

    def require_sound(self, position: int, dtype: DTypeLike, *, soft: bool) -> None:
        """Raise ``ValueError`` unless this is a state that `position` tokens can lead to, as far as indices go."""
        axes = {"keys": 3, "values": 3, "used": 1}
        for name, array in self.arrays().items():
            if array.ndim != axes.get(name, 2) or array.shape[0] < 1:
                raise ValueError(f"{name} has shape {array.shape}")
        heads, n_select, window = len(self.used), self.heap.shape[1], self.window_scores.shape[1]
        model = CacheState.empty(
            heads, n_select, window, self.keys.shape[-1], self.values.shape[-1], dtype, soft=soft
        ).arrays()
        for name, array in self.arrays().items():
            wanted = (heads, array.shape[-1]) if name == "interior" and soft else model[name].shape
            if array.shape != wanted or array.dtype != model[name].dtype:
                raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, {wanted} was wanted")
            if name != "sums" and not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        candidates = max(position - window, 0)
        if (self.used != min(candidates, n_select)).any():
            raise ValueError(f"{self.used.tolist()} slots are in use after {position} tokens")
        for head, used in enumerate(self.used):
            held = self.slot_positions[head, :used]
            order = self.heap[head, :used]
            if not np.array_equal(np.sort(order), np.arange(used)) or np.unique(held).size < used:
                raise ValueError("a slot or a pair occurs twice")
            if ((held < 0) | (held >= candidates)).any():
                raise ValueError("a slot holds a pair that was no candidate")
            scores = self.slot_scores[head, order]
            parents = (np.arange(1, used) - 1) // 2
            if (scores[parents] > scores[1:]).any():
                raise ValueError("the slots are not a heap")
            self._require_heaps(head, candidates)

    def _require_heaps(self, head: int, candidates: int) -> None:
        if np.isnan(self.sums[head]).any() or not np.isfinite(self.sums[head, 1:]).all():
            raise ValueError("sums are not finite")
        room = self.ones.shape[1] - 1, self.interior.shape[1]
        if ((self.sizes[head] < 0) | (self.sizes[head] > np.maximum(room, 0))).any():
            raise ValueError(f"the thresholds' heaps hold {self.sizes[head].tolist()} entries")
        if self.sizes[head].sum() > candidates:
            raise ValueError("the thresholds' heaps hold more scores than came")
        for heap, size in zip((self.ones[head], self.interior[head]), self.sizes[head], strict=True):
            if (heap[(np.arange(1, size) - 1) // 2] > heap[1:size]).any():
                raise ValueError("a threshold's heap is out of order")
