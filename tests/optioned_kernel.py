"""Attention with every option that kernels have, in plain NumPy; what is stored is rounded, sums are float32.

It computes whole matrices, reads its options one query at a time, and shares nothing with the check but the rounding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.testing.conformance.precision import precision


@dataclass
class Options:
    """What a call was given."""

    causal: bool
    scale: float
    mask: Any = None
    bias: Any = None
    alibi_slopes: Any = None
    softcap: Any = None
    window: Any = None
    sinks: Any = None
    lengths: Any = None
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None
    align: Any = None
    keep: Any = None
    dropout: Any = None
    indices: Any = None
    blocks: Any = None
    block_size: Any = None
    block_table: Any = None
    dlse: Any = None


class Kernel:
    """A forward that returns the log-sum-exps too, and a backward."""

    def __init__(self, dtype="float32"):
        self.dtype = dtype
        self.to = precision(dtype).round
        self.work = np.float64 if dtype == "float64" else np.float32

    def forward(
        self, q, k, v, *, causal, scale, mask, bias=None, alibi_slopes=None, softcap=None, window=None, sinks=None,
        lengths=None, cu_seqlens_q=None, cu_seqlens_k=None, align=None, keep=None, dropout=None, indices=None,
        blocks=None, block_size=None, block_table=None,
    ):  # fmt: skip
        given = {x: value for x, value in locals().items() if x not in ("self", "q", "k", "v")}
        out, lse, *_ = self.attend(q, k, v, Options(**given))
        return out, lse

    def backward(
        self, dout, q, k, v, *, causal, scale, mask, bias=None, alibi_slopes=None, softcap=None, window=None,
        sinks=None, lengths=None, cu_seqlens_q=None, cu_seqlens_k=None, align=None, keep=None, dropout=None,
        indices=None, blocks=None, block_size=None, dlse=None,
    ):  # fmt: skip
        given = {x: value for x, value in locals().items() if x not in ("self", "dout", "q", "k", "v")}
        return self.pull_back(dout, q, k, v, Options(**given))

    def attend(self, q, k, v, o):
        q, k, v = (np.asarray(x, self.work) for x in (q, k, v))
        if o.block_table is not None:
            k, v = (
                np.stack([np.concatenate([pages[p] for p in row], axis=-2) for row in o.block_table])
                for pages in (k, v)
            )
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scaled = (q @ k.swapaxes(-1, -2)) * self.work(o.scale)
        s = scaled if o.softcap is None else self.work(o.softcap) * np.tanh(scaled / self.work(o.softcap))
        place = np.arange(q.shape[-2]) + (k.shape[-2] - q.shape[-2] if o.align == "bottom-right" else 0)
        if o.bias is not None:
            s = s + np.asarray(o.bias, self.work)
        if o.alibi_slopes is not None:
            far = np.abs(place[:, None] - np.arange(k.shape[-2])).astype(self.work)
            s = s - np.asarray(o.alibi_slopes, self.work)[:, None, None] * far
        s = np.where(self.seen(s.shape, place, group, o), s, -np.inf)
        top = s.max(axis=-1, keepdims=True)
        if o.sinks is not None:
            sinks = np.asarray(o.sinks, self.work)[:, None, None]
            top = np.maximum(top, sinks)
        top = np.where(np.isneginf(top), 0, top)
        p = np.exp(s - top)
        total = p.sum(axis=-1, keepdims=True) + (0 if o.sinks is None else np.exp(sinks - top))
        lse = np.where(total > 0, top + np.log(np.where(total > 0, total, 1)), -np.inf)
        kept = 1 if o.keep is None else o.keep / self.work(1 - o.dropout)
        out = self.to((self.to(p * kept) @ v) / np.where(total > 0, total, 1))
        return out, lse[..., 0], s, scaled, kept, k, v

    def seen(self, shape, place, group, o):
        seen = np.ones(shape, bool)
        if o.mask is not None:
            seen &= o.mask
        for i, at in enumerate(place):
            if o.causal:
                seen[..., i, at + 1 :] = False
            if o.window is not None:
                seen[..., i, : max(0, at - o.window[0])] = False
                seen[..., i, at + o.window[1] + 1 :] = False
            if o.cu_seqlens_q is not None:
                own = next(j for j, end in enumerate(o.cu_seqlens_q[1:]) if i < end)
                seen[..., i, : o.cu_seqlens_k[own]] = False
                seen[..., i, o.cu_seqlens_k[own + 1] :] = False
            if o.blocks is not None:
                row = np.repeat(o.blocks[:, i // o.block_size], o.block_size, axis=-1)
                seen[..., i, :] &= row[:, : shape[-1]]
        for b in range(shape[0]):
            if o.lengths is not None:
                seen[b, :, :, o.lengths[b] :] = False
        if o.indices is not None:
            listed = (np.asarray(o.indices)[..., None] == np.arange(shape[-1])).any(axis=-2)
            seen &= np.repeat(listed, group, axis=1)
        return seen

    def pull_back(self, dout, q, k, v, o):
        n_kv = k.shape[1]
        out, lse, s, scaled, kept, k, v = self.attend(q, k, v, o)
        dout, q = np.asarray(dout, self.work), np.asarray(q, self.work)
        p = np.exp(s - np.where(np.isneginf(lse), 0, lse)[..., None])
        dlse = 0 if o.dlse is None else np.asarray(o.dlse, self.work)[..., None]
        delta = (dout * out).sum(axis=-1, keepdims=True) - dlse
        dv = self.to(p * kept).swapaxes(-1, -2) @ dout
        ds = p * ((dout @ v.swapaxes(-1, -2)) * kept - delta)
        more = []
        if o.bias is not None:
            over = tuple(i for i, size in enumerate(np.shape(o.bias)) if size == 1)
            more.append(self.to(ds.sum(axis=over, keepdims=True)))
        if o.sinks is not None:
            weight = np.exp(np.asarray(o.sinks, self.work)[:, None] - lse)[..., None]
            more.append(self.to(-(weight * delta).sum(axis=(0, 2, 3))))
        if o.softcap is not None:
            ds = ds * (1 - np.tanh(scaled / self.work(o.softcap)) ** 2)
        ds = self.to(ds)
        dq, dk = self.work(o.scale) * (ds @ k), self.work(o.scale) * (ds.swapaxes(-1, -2) @ q)
        dk, dv = (x.reshape(x.shape[0], n_kv, -1, *x.shape[2:]).sum(axis=2) for x in (dk, dv))
        return (self.to(dq), self.to(dk), self.to(dv), *more)
