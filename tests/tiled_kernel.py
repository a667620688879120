"""A flash attention kernel in plain NumPy, with tiles and half precision as kernels have, and switches to break it.

Only NumPy and the rounding of the check's precisions are used. `rounded` rounds what a kernel stores; sums are float32.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refattn.testing.conformance.precision import precision

LOG2E = 1 / math.log(2)


@dataclass(frozen=True)
class Kernel:
    """Attention by tiles; every field after `dtype` is a liberty that kernels take, `fault` a mistake."""

    tile: int = 64
    dtype: str = "float32"
    queries: int = 64  # a tile of
    splits: int = 1
    base2: bool = False  # exp2 of logits times log2 e
    scale_first: bool = False  # q is multiplied by the scale, and rounded
    round_weights: bool = True  # to the type, before the second product
    delta_of_out: bool = True  # row sums of dP ∘ P from the rounded output
    fault: str = ""

    def __call__(self, q, k, v, *, causal, scale, mask):
        return self.forward(q, k, v, causal, scale, mask)[0]

    def rounded(self, x):
        return precision(self.dtype).round(x)

    def seen(self, rows, cols, causal, mask, heads, n_k):
        """Which pairs of a block are seen, broadcast to (B, H, rows, cols)."""
        f = self.fault
        seen = np.ones((rows.stop - rows.start, cols.stop - cols.start), bool)
        if causal:
            lag = np.arange(rows.start, rows.stop)[:, None] - np.arange(cols.start, cols.stop)
            late = f == "causal edge one late in tiles" and cols.start and cols.start % self.tile == 0
            early = f == "causal edge one early from row 128 on" and rows.start >= 128
            seen = lag >= (-1 if late else 1 if early else 0)
            if f == "diagonal tile counts as full" and rows.start >= 256:
                seen = lag >= -(self.tile - 1)
        if mask is not None:
            if f == "mask of the first batch":
                mask = mask if mask.ndim == 2 else np.broadcast_to(mask[:1], mask.shape)
            if f == "mask of row length n_q":
                n_q = mask.shape[-2]
                flat = np.resize(mask.reshape(*mask.shape[:-2], -1), (*mask.shape[:-2], n_q * max(n_q, n_k)))
                mask = flat.reshape(*mask.shape[:-2], -1)[..., : n_q * n_q].reshape(*mask.shape[:-2], n_q, n_q)
                mask = np.concatenate([mask] * (1 + n_k // n_q), axis=-1)[..., :n_k]
            seen = seen & mask[..., rows, cols]
        return seen

    def forward(self, q, k, v, causal, scale, mask):
        f, to = self.fault, self.rounded
        group = q.shape[1] // k.shape[1]
        if f == "strides ignored":
            q, k, v = (x.ravel(order="K").reshape(x.shape) for x in (q, k, v))
        if f == "scale written into q":
            q *= q.dtype.type(0.5)
            scale = 2 * scale
        q, k, v = (np.asarray(x, np.float64 if self.dtype == "float64" else np.float32) for x in (q, k, v))
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        n_q, n_k = q.shape[-2], k.shape[-2]
        if f == "page swapped" and n_k > 256:
            order = np.arange(n_k)
            order[128:192], order[192:256] = np.arange(192, 256), np.arange(128, 192)
            v = v[..., order, :]
        if f == "address of 32 bits overflows" and n_k > 1024:  # emulated: as if addresses ended at 1,024 rows
            v = v[..., np.arange(n_k) % 1024, :]
        if f == "address of keys overflows" and n_k > 512:
            k = k[..., np.arange(n_k) % 512, :]
        qs = to(q * np.asarray(scale, q.dtype)) if self.scale_first else q
        out = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
        lse = np.full((*q.shape[:-1], 1), -np.inf, q.dtype)
        for start in range(0, n_q, self.queries):
            rows = slice(start, min(start + self.queries, n_q))
            if f == "zeros from row 256 on" and start >= 256:
                continue
            if f == "last partial tile of queries lost" and rows.stop - start < self.queries and start:
                continue
            if f == "every fourth tile of queries lost" and start // self.queries % 4 == 3:
                continue
            parts = []
            edges = np.cumsum([0, *(len(x) for x in np.array_split(np.arange(n_k), self.splits))])
            for first, last in pairwise(edges):
                parts.append(self.part(qs, k, v, rows, first, last, causal, scale, mask))
            out[..., rows, :], lse[..., rows, :] = self.merge(parts)
            if f == "rows of the third tile shifted" and start == 2 * self.queries:
                out[..., rows, :] = np.roll(out[..., rows, :], 1, axis=-2)
            if f == "last row of a tile overwritten" and start:
                out[..., start - 1, :] = out[..., start, :]
        if f == "heads swapped beyond 256" and n_q > 256 and q.shape[1] > 1:
            out[..., 256:, :] = out[:, ::-1, 256:, :]
        return precision(precision(self.dtype).results).round(out), lse

    def part(self, q, k, v, rows, first, last, causal, scale, mask):
        """One split of the keys for one tile of queries: its accumulator, its sum and its maximum."""
        f, to = self.fault, self.rounded
        n_k = k.shape[-2]
        lowest = -5e4 if f == "maximum starts at −5e4" else -np.inf
        largest = np.full((*q.shape[:2], rows.stop - rows.start, 1), lowest, q.dtype)
        total, sums = np.zeros_like(largest), np.zeros((*largest.shape[:-1], v.shape[-1]), q.dtype)
        starts = list(range(first, last, self.tile))
        for place, start in enumerate(starts):
            cols = slice(start, min(start + self.tile, last))
            if f == "third tile skipped" and place == 2:
                continue
            if f == "last tile skipped" and len(starts) > 3 and place == len(starts) - 1:
                continue
            if f == "last partial tile skipped" and cols.stop - start < self.tile and place > 1:
                continue
            if f == "first tile skipped from row 256 on" and place == 0 and rows.start >= 256:
                continue
            seen = self.seen(rows, cols, causal, mask, q.shape[1], n_k)
            s = q[..., rows, :] @ k[..., cols, :].swapaxes(-1, -2)
            s = s if self.scale_first else s * np.asarray(scale, s.dtype)
            raw = np.where(seen, s / scale if scale else s, -np.inf)
            s = np.where(seen, s, -np.inf)
            top = np.maximum(largest, s.max(axis=-1, keepdims=True, initial=-np.inf))
            if f == "largest taken before a negative scale" and scale < 0:
                top = np.maximum(largest, scale * raw.max(axis=-1, keepdims=True, initial=-np.inf))
            safe = np.where(np.isneginf(top), 0, top)
            with np.errstate(over="ignore", invalid="ignore"):
                p = np.exp2((s - safe) * np.float32(LOG2E)).astype(s.dtype) if self.base2 else np.exp(s - safe)
                factor = np.exp(np.where(np.isneginf(largest), -np.inf, largest - safe))
            if f == "third tile counted twice" and place == 2:
                p = 2 * p
            not_rescaled = {
                "not rescaled in the third tile": place == 2,
                "not rescaled in the last tile": place > 3 and place == len(starts) - 1,
            }
            grown = 1.0 if not_rescaled.get(f) else factor
            if f == "sum not rescaled in the third tile" and place == 2:
                total = total + p.sum(axis=-1, keepdims=True)
            else:
                total = total * grown + p.sum(axis=-1, keepdims=True)
            if f == "padded keys counted" and cols.stop - start < self.tile and place:
                total = total + (self.tile - (cols.stop - start)) * np.exp(np.minimum(-safe, 80))
            kept = to(p) if self.round_weights else p
            values = v[..., cols, :]
            if f == "values of the tile before from the fifth on" and place >= 4:
                values = v[..., start - self.tile : start - self.tile + values.shape[-2], :]
            if f == "last value of a full tile lost" and place > 2 and values.shape[-2] == self.tile:
                kept = np.where(np.arange(self.tile) == self.tile - 1, 0, kept)
            with np.errstate(over="ignore", invalid="ignore"):
                sums = sums * grown + kept @ values
            if f == "accumulator in bfloat16":
                sums = precision("bfloat16").round(sums)
            largest = top
            if f == "accumulator cleared every eight tiles" and place % 8 == 7:
                sums = np.zeros_like(sums)
        return sums, total, largest

    def merge(self, parts):
        """One output of the splits."""
        top = np.max([largest for _, _, largest in parts], axis=0)
        safe = np.where(np.isneginf(top), 0, top)
        if self.fault == "splits merged without weights":
            parts = [(sums / np.where(total > 0, total, 1), (total > 0) * 1.0, 0 * safe) for sums, total, _ in parts]
            safe = 0 * safe
        with np.errstate(over="ignore", invalid="ignore"):
            factors = [np.exp(np.where(np.isneginf(largest), -np.inf, largest - safe)) for _, _, largest in parts]
        total = sum(t * c for (_, t, _), c in zip(parts, factors, strict=True))
        sums = sum(s * c for (s, _, _), c in zip(parts, factors, strict=True))
        if self.fault == "last split lost" and len(parts) > 1:
            sums = sum(s * c for (s, _, _), c in list(zip(parts, factors, strict=True))[:-1])
        there = total > 0
        some = np.where(there, total, 1)
        with np.errstate(invalid="ignore"):
            sums = sums / some
        return np.where(there, sums, 0), np.where(there, safe + np.log(some), np.inf)

    def backward(self, dout, q, k, v, *, causal, scale, mask):
        f, to = self.fault, self.rounded
        out, lse = self.forward(q, k, v, causal, scale, mask)
        n_kv, group = k.shape[1], q.shape[1] // k.shape[1]
        work = np.float64 if self.dtype == "float64" else np.float32
        dout, q, k, v = (np.asarray(x, work) for x in (dout, q, k, v))
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        delta = (dout * out).sum(axis=-1, keepdims=True)
        qs = to(q * np.asarray(scale, q.dtype)) if self.scale_first else q
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        n_q, n_k = q.shape[-2], k.shape[-2]
        for start in range(0, n_k, self.tile):
            cols = slice(start, min(start + self.tile, n_k))
            final = start and cols.stop == n_k
            for first in range(0, n_q, self.queries):
                rows = slice(first, min(first + self.queries, n_q))
                s = qs[..., rows, :] @ k[..., cols, :].swapaxes(-1, -2)
                s = s if self.scale_first else s * np.asarray(scale, s.dtype)
                bound = lse[..., rows, :]
                if f == "lse of the last tile forgotten" and final:
                    bound = bound * 0
                with np.errstate(over="ignore"):
                    p = np.where(self.seen(rows, cols, causal, mask, q.shape[1], n_k), np.exp(s - bound), 0)
                dp = dout[..., rows, :] @ v[..., cols, :].swapaxes(-1, -2)
                ds = to(p * (dp - (0 if f == "delta lost in the last tile" and final else delta[..., rows, :])))
                if not (f == "dk and dv miss the last queries" and first and rows.stop == n_q):
                    dv[..., cols, :] += to(p).swapaxes(-1, -2) @ dout[..., rows, :]
                    dk[..., cols, :] += ds.swapaxes(-1, -2) @ q[..., rows, :]
                twice = 2 if f == "dq added twice on a tile's edge" and start == 2 * self.tile else 1
                if not (f == "dq misses the last keys" and final):
                    dq[..., rows, :] += twice * (ds @ k[..., cols, :])
        done = precision(precision(self.dtype).results).round
        factor = 1.2 if f == "dq and dk times 1.2" else 1.0
        dk, dv = (x.reshape(x.shape[0], n_kv, group, *x.shape[2:]).sum(axis=2) for x in (dk, dv))
        return done(factor * scale * dq), done(factor * scale * dk), done(dv)
