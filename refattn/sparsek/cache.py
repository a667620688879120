"""Generation with SparseK attention: k slots and a ring of w for every key-value head (arXiv 2406.16747).

The order of two scores never changes, so a pair that has left the best k is never needed again. What is kept:

    slots        the k best-scored pairs outside the window, as a heap, the worst first
    ring         the w pairs of the window
    thresholds   the scores in the support of SparseK, as two heaps (soft gates only)

A step moves the window by one, offers the pair that leaves it to the slots, raises the threshold by its score, and
attends to what is kept: row i of `refattn.sparsek.sparsek_attention`.

The thresholds are the one part whose size depends on the scores. The gate of a selected pair needs τ, and τ needs
every score in the support, of which there may be more than k (all of them, if scores are equal). They are scalars,
eight bytes each; with ``hard=True`` or ``gate="none"`` there are none. See ``docs/explanation/sparsek-fast.md``.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._json import parsed
from refattn._memory import require_memory
from refattn._npz import read_arrays, write_arrays
from refattn._overflow import all_finite, average, overflow_judged, replace_what_is_not_finite, wider
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_count,
    as_flag,
    as_option,
    as_real,
    as_real_array,
    cast,
    is_python_number,
    require_finite,
    require_rank,
)
from refattn.sparsek import fast
from refattn.sparsek._cache_state import SPARE, CacheState
from refattn.sparsek._problem import GATES, MOST_PAIRS, SparseKProblem, as_problem, overflow

_FORMAT = "refattn-sparsek-cache/1"


class SparseKCache:
    """SparseK attention one token at a time, in memory that does not depend on how many came.

    Parameters
    ----------
    n_select, window, gate, hard, scale : int, int, str, bool, float
        As for `sparsek_attention`; `hard` makes every gate one.

    Attributes
    ----------
    position : int
        Tokens taken in so far.

    Raises
    ------
    TypeError, ValueError
        An option is of the wrong kind, negative or unknown.
    MemoryError
        At the first token: what would be kept does not fit; the message has the estimate.

    Notes
    -----
    Memory O(H_kv (n_select + window)(d + d_v)), and the scores in the support of SparseK if gates are soft. Shapes and
    dtype are those of the first token. Source: arXiv 2406.16747, its generation with SparseK.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.sparsek import SparseKCache, sparsek_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 20, 4))
    >>> scores = rng.standard_normal(20)
    >>> cache = SparseKCache(n_select=3, window=2)
    >>> out = [cache.step(q[t], k[t], v[t], scores[t]) for t in range(20)]
    >>> bool(np.allclose(out, sparsek_attention(q, k, v, scores, n_select=3, window=2)))
    True
    """

    def __init__(
        self,
        n_select: int,
        window: int = 0,
        *,
        gate: str = "kv",
        hard: bool = False,
        scale: float | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "n_select": as_count("n_select", n_select, least=0, most=MOST_PAIRS),
            "window": as_count("window", window, least=0, most=MOST_PAIRS),
            "gate": as_option("gate", gate, GATES),
            "hard": as_flag("hard", hard),
            "scale": None if scale is None else as_real("scale", scale),
        }
        self.position = 0
        self._lead: tuple[int, ...] = ()
        self._largest = 0.0  # entry of a key so far
        self._state: CacheState | None = None
        self._moving = False

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return 0 if self._state is None else self._state.nbytes

    @property
    def _soft(self) -> bool:
        return not self._options["hard"] and self._options["gate"] != "none" and self._options["n_select"] > 0

    def step(self, q: ArrayLike, k: ArrayLike, v: ArrayLike, score: ArrayLike) -> FloatArray:
        """Take in one token and return its attention.

        Parameters
        ----------
        q, k, v, score : array_like, shapes (…, d), (…, d), (…, d_v), (…)
            Its query, key, value, and score for every key-value head. Leading axes as in `sparsek_attention`, without
            that of positions: fewer key-value heads than query heads (the axis before d) are shared by groups.

        Returns
        -------
        ndarray, shape (…, d_v)
            The attention of this token, in the dtype of the first one.

        Raises
        ------
        TypeError, ValueError
            As `sparsek_attention`; or the token's shapes or dtype are not those of the first. Nothing is taken in then.

        Notes
        -----
        Time O(H (n_select + window)(d + d_v) + log n_select), whatever the position.
        """
        token = [as_real_array(name, x) for name, x in (("q", q), ("k", k), ("v", v))]
        for name, row in zip("qkv", token, strict=True):
            require_rank(name, row, 1, "(…, d)")
        query, key, value = (row[..., None, :] for row in token)
        number = as_real_array("score", score)
        if is_python_number(score):  # which never decides a dtype
            kept_in = np.result_type(np.float32, *(row.dtype for row in token))
            number = cast("score", number, kept_in if self._state is None else self._state.keys.dtype)
        problem = self._problem(query, key, value, number[..., None])
        keys, values, scores = self._by_head(problem)
        with self._unchanged_if_refused(problem, keys):
            state = self._ready(problem)
            self._move_window(state, keys[:, 0], values[:, 0], scores[:, 0])
            out: FloatArray = self._attend(state, problem.q, problem.scale)[..., 0, :]
        return out

    def prefill(self, q: ArrayLike, k: ArrayLike, v: ArrayLike, scores: ArrayLike) -> FloatArray:
        """Take in a prompt and return its attention; the state is that after as many steps.

        Parameters
        ----------
        q, k, v, scores : array_like
            As `sparsek_attention` takes them, n tokens.

        Returns
        -------
        ndarray, shape (…, n, d_v)
            The attention of every token.

        Raises
        ------
        TypeError, ValueError
            As `sparsek_attention`; or the shapes or dtype are not those of the first token. Nothing is taken in then.

        Notes
        -----
        An empty cache takes the prompt through the fast path; one that holds tokens, a step at a time.

        Examples
        --------
        >>> import numpy as np
        >>> from refattn.sparsek import SparseKCache
        >>> x, scores = np.arange(12.0).reshape(6, 2), np.zeros(6)
        >>> cache = SparseKCache(n_select=2, window=2)
        >>> cache.prefill(x, x, x, scores).shape, cache.position
        ((6, 2), 6)
        """
        problem = self._problem(q, k, v, scores)
        keys, values, z = self._by_head(problem)
        if self.position > 0:
            rows = []
            with self._unchanged_if_refused(problem, keys):
                for t in range(z.shape[1]):
                    self._move_window(self._ready(problem), keys[:, t], values[:, t], z[:, t])
                    rows.append(self._attend(self._ready(problem), problem.q[..., t : t + 1, :], problem.scale))
            return np.concatenate(rows, axis=-2)
        with overflow_judged():
            heads = fast.forward(problem)
        require_finite("v: output", heads)
        state = self._new_state(problem)
        _fill(state, keys, values, z)
        self._state, self._lead, self.position = state, self._lead_of(problem), z.shape[1]
        self._largest = _extent(keys)
        return problem.layout.merge(heads.reshape(*problem.layout.inner, *heads.shape[-2:]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache to a ``.npz`` file, whole or not at all.

        Parameters
        ----------
        path : path
            Of the file; an older one is replaced when the new one is complete.

        Raises
        ------
        ValueError
            The cache is empty.
        OSError
            The file cannot be written; an older one stays as it was.
        """
        self._require_whole()
        if self._state is None:
            raise ValueError("save: the cache is empty, one that holds a token was wanted")
        about = self._options | {
            "format": _FORMAT,
            "position": self.position,
            "lead": self._lead,
            "largest": self._largest,
        }
        text = np.frombuffer(json.dumps(about).encode("ascii"), np.uint8)
        write_arrays(path, {"about": text, **self._state.arrays()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparseKCache:
        """Read a cache from the file that `save` wrote; nothing in it is executed or unpickled.

        Parameters
        ----------
        path : path
            Of the file.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is not such a file, or truncated, altered, pickled, or inconsistent; the message names it.
        """
        arrays = read_arrays(path, ("about", *CacheState.__dataclass_fields__))
        try:
            about = parsed(arrays.pop("about").astype(np.uint8).tobytes())
            if about.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            position = as_count("position", about.pop("position"), least=1, most=1 << 62)
            lead = tuple(as_count("lead", axis, least=1) for axis in about.pop("lead"))
            largest = as_real("largest", about.pop("largest"), least=0.0)
            cache = cls(about.pop("n_select"), about.pop("window"), **about)
            state = CacheState(**arrays)
            cache._require_own(state, position, lead, largest)
            if cache._soft:
                state.make_room(0)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path}: not a cache that can be used ({error})") from error
        cache._state, cache._lead, cache.position, cache._largest = state, lead, position, largest
        return cache

    def _require_whole(self) -> None:
        if self._moving:
            raise ValueError(
                f"the cache was interrupted while it took in the token at position {self.position}: what it keeps is of"
                " no use, begin again with a new one"
            )

    def _require_own(self, state: CacheState, position: int, lead: tuple[int, ...], largest: float) -> None:
        state.require_sound(position, state.keys.dtype, soft=self._soft)
        sizes = state.heap.shape[1], state.window_scores.shape[1]
        if sizes != (self._options["n_select"], self._options["window"]) or state.keys.shape[0] != int(np.prod(lead)):
            raise ValueError(f"its {state.keys.shape[0]} heads of {sizes} rows are not those of its options")
        if state.keys.dtype not in (np.float32, np.float64) or _extent(state.keys) > largest:
            raise ValueError("its keys are not of the dtype or the size it says")

    def _problem(self, q: ArrayLike, k: ArrayLike, v: ArrayLike, scores: ArrayLike) -> SparseKProblem:
        """Check tokens as `sparsek_attention` does, and against the first one."""
        self._require_whole()
        problem = as_problem(q, k, v, scores, **self._options, check_finite=True)
        state = self._state
        if state is not None:
            came = (self._lead_of(problem), problem.k.shape[-1], problem.v.shape[-1])
            first = (self._lead, state.keys.shape[-1], state.values.shape[-1])
            if came != first:
                raise ValueError(f"k, v: (heads, d, d_v) {came} came, those of the first token {first} were wanted")
            if problem.q.dtype != state.keys.dtype:
                _refuse_dtype(state.keys.dtype, q=q, k=k, v=v, scores=scores)
        return problem

    @staticmethod
    def _lead_of(problem: SparseKProblem) -> tuple[int, ...]:
        return np.broadcast_shapes(problem.k.shape[:-2], problem.v.shape[:-2])

    def _by_head(self, problem: SparseKProblem) -> tuple[FloatArray, FloatArray, NDArray[np.float64]]:
        """Return k and v ``(F, n, ·)`` and the scores ``(F, n)`` of the F key-value heads."""
        lead = self._lead_of(problem)
        k, v, z = (
            np.ascontiguousarray(np.broadcast_to(x, lead + x.shape[-2:]).reshape(-1, *x.shape[-2:]))
            for x in (problem.k, problem.v, problem.scores[..., None])
        )
        return k, v, z[..., 0].astype(np.float64)

    def _new_state(self, problem: SparseKProblem) -> CacheState:
        heads = int(np.prod(self._lead_of(problem)))
        d, d_v = problem.k.shape[-1], problem.v.shape[-1]
        scores = problem.n_select * (SPARE + 5) + problem.window
        rows = (problem.n_select + problem.window) * (d + d_v) * problem.q.itemsize
        require_memory("n_select, window: what the cache keeps", heads * (8 * scores + rows))
        return CacheState.empty(heads, problem.n_select, problem.window, d, d_v, problem.q.dtype, soft=self._soft)

    def _ready(self, problem: SparseKProblem) -> CacheState:
        """Return the state with room for one more score."""
        if self._state is None:
            self._state, self._lead = self._new_state(problem), self._lead_of(problem)
        if self._soft:
            self._state.make_room(int(self._state.sizes.sum(axis=1).max()) + 1)
        return self._state

    @contextmanager
    def _unchanged_if_refused(self, problem: SparseKProblem, keys: FloatArray) -> Iterator[None]:
        """Take in tokens, and note the size of their keys, or undo it all where a logit overflows.

        What is kept is copied first only if the sizes of queries and keys allow a logit to overflow.
        """
        largest = max(self._largest, _extent(keys))
        bound = problem.q.shape[-1] * _extent(problem.q) * largest * max(abs(problem.scale), 1.0)
        may_overflow = not bound < float(np.finfo(problem.q.dtype).max)
        before = (copy.deepcopy(self._state) if may_overflow else self._state), self._lead, self.position
        try:
            yield
        except ValueError:
            self._state, self._lead, self.position = before
            raise
        self._largest = largest

    def _move_window(self, state: CacheState, k: FloatArray, v: FloatArray, score: NDArray[np.float64]) -> None:
        from refattn.sparsek._cache_loops import move_window

        arguments = (
            self.position, (k, v, score), self._options["window"], state.keys, state.values, state.window_scores,
            (state.used, state.heap, state.slot_scores, state.slot_positions),
            (state.ones, state.interior, state.sizes, state.sums), np.empty(2),
        )  # fmt: skip
        self._moving = True  # until the position says that the token is in: Ctrl-C may come between the two
        move_window(*arguments)
        self.position += 1
        self._moving = False

    def _attend(self, state: CacheState, q: FloatArray, scale: float) -> FloatArray:
        """Return the attention of the newest token's queries, q ``(…, 1, d)``, to what is kept."""
        n_select, window, gate = self._options["n_select"], self._options["window"], self._options["gate"]
        rows = np.arange(state.keys.shape[1])
        attended = (rows < state.used[:, None]) | ((rows >= n_select) & (rows < n_select + min(self.position, window)))
        gates = np.ones(attended.shape, state.keys.dtype)
        if self._soft:
            gates[:, :n_select] = np.clip(state.slot_scores - state.sums[:, :1], 0, 1)
        by_row = np.stack([gates, attended], axis=-1)
        keys, values, by_row = (x.reshape(*self._lead, *x.shape[1:]) for x in (state.keys, state.values, by_row))
        q = np.ascontiguousarray(q)
        layout = HeadLayout.of(q, keys, values)
        _, _, by_row = layout.expand(q, keys, by_row)
        queries, keys, values = layout.expand(q, keys, values)
        gates, hidden = by_row[..., None, :, 0], by_row[..., None, :, 1] == 0
        with one_blas_thread(), overflow_judged():
            logits = queries @ keys.swapaxes(-1, -2)
            logits *= np.asarray(scale, logits.dtype)
            if "k" in gate:
                logits *= gates
            if not all_finite(logits):  # perhaps before the gate and the scale only
                wide_q, wide_k = wider(queries, keys)
                again = wide_q @ wide_k.swapaxes(-1, -2) * scale
                replace_what_is_not_finite(logits, again * gates if "k" in gate else again)
                bad = ~(np.isfinite(logits) | hidden)
                if bad.any():
                    head = int(bad.reshape(-1, bad.shape[-1]).any(axis=-1).argmax())
                    raise overflow(logits.dtype, head, self.position - 1)
            logits[hidden] = -np.inf
            largest = logits.max(axis=-1, keepdims=True, initial=-np.inf)
            weights = np.exp(logits - np.where(largest == -np.inf, 0, largest))
            total = weights.sum(axis=-1, keepdims=True)
            weights /= np.where(total > 0, total, 1)
            if "v" in gate:
                weights *= gates
            out = layout.merge(average(weights, values))
        require_finite("v: output", out)
        return out


def _refuse_dtype(wanted: np.dtype[Any], **given: ArrayLike) -> NoReturn:
    """Raise naming the arrays of a token whose dtype is not that of the first token."""
    dtypes = {name: as_real_array(name, array).dtype for name, array in given.items()}
    culprits = [name for name, dtype in dtypes.items() if dtype != wanted]
    if wanted == np.float64:  # any of them in float64 would have been enough
        culprits = ["q", "k", "v"]
    came = ", ".join(sorted({str(dtypes[name]) for name in culprits}))
    raise ValueError(f"{', '.join(culprits)}: {came} came, {wanted} was wanted: the dtype that the first token decided")


def _extent(array: FloatArray) -> float:
    """Largest absolute value."""
    return float(max(array.max(initial=0.0), -array.min(initial=0.0)))


def _fill(state: CacheState, keys: FloatArray, values: FloatArray, scores: NDArray[np.float64]) -> None:
    """Bring an empty state to where steps through these tokens would bring it."""
    from refattn.sparsek._cache_loops import admit_all
    from refattn.sparsek._prefix_loops import continue_thresholds

    n, (n_select, window) = scores.shape[1], (state.heap.shape[1], state.window_scores.shape[1])
    candidates = max(n - window, 0)
    recent = np.arange(candidates, n)
    for head, z in enumerate(scores):
        chosen = z[:candidates]
        used = admit_all(chosen, state.heap[head], state.slot_scores[head], state.slot_positions[head])
        state.used[head] = used
        held = state.slot_positions[head, :used]
        state.keys[head, :used], state.values[head, :used] = keys[head, held], values[head, held]
        if window:
            rows = n_select + recent % window
            state.keys[head, rows], state.values[head, rows] = keys[head, recent], values[head, recent]
            state.window_scores[head, recent % window] = z[recent]
        if state.interior.shape[1]:
            ones, interior, tau = np.empty((3, candidates + 1))
            continue_thresholds(chosen, n_select, ones, interior, state.sizes[head], state.sums[head], tau)
            n_ones, n_interior = state.sizes[head]
            state.make_room(n_interior)
            state.ones[head, :n_ones], state.interior[head, :n_interior] = ones[:n_ones], interior[:n_interior]
