"""The first half of a layer: norm, queries, keys and values, positions, attention, and back onto the residual stream.

    a = norm(x)        q, k, v = W_q a, W_k a, W_v a        x + W_o attention(R q, R k, v)

R turns by the position in a Llama and is nothing in a GPT-2, whose positions are in x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray
from refattn.models.attentions.protocol import LayerGradients
from refattn.models.layers.linear import LinearCache
from refattn.models.layers.named import (
    Gradients,
    named_linear_backward,
    named_linear_forward,
    named_norm_backward,
    named_norm_forward,
)
from refattn.models.layers.normalisation import NormCache
from refattn.models.layers.rotary import ComplexArray, rotary_backward, rotary_forward

Attend = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], tuple[FloatArray, Any]]
"""``attend(q, k, v, a) -> (out, cache)``: q and out (…, H, n, d), k and v (…, H_kv, n, d), a (…, n, width)."""


class AttentionBlockCache(NamedTuple):
    """What `attention_block_backward` needs: the cache of every step, and the turn (None: there was none)."""

    norm: NormCache
    projections: tuple[LinearCache, LinearCache, LinearCache]
    turn: ComplexArray | None
    attended: Any
    output: LinearCache


@one_blas_thread()  # once for all its products
def projected(
    a: FloatArray, tensors: Mapping[str, FloatArray], head_width: int, turn: ComplexArray | None
) -> tuple[tuple[FloatArray, FloatArray, FloatArray], tuple[LinearCache, LinearCache, LinearCache]]:
    """Return q, k and v of the normalised input a, shape (…, n, width), by head and with positions applied."""
    q, of_q = named_linear_forward(a, tensors, "attn_q")
    k, of_k = named_linear_forward(a, tensors, "attn_k")
    v, of_v = named_linear_forward(a, tensors, "attn_v")
    q, k, v = (_split(rows, head_width) for rows in (q, k, v))
    if turn is not None:
        (q, _), (k, _) = rotary_forward(q, turn), rotary_forward(k, turn)
    q, k, v = (np.ascontiguousarray(array) for array in (q, k, v))
    return (q, k, v), (of_q, of_k, of_v)


def attention_block_forward(
    x: FloatArray,
    tensors: Mapping[str, FloatArray],
    eps: float,
    head_width: int,
    turn: ComplexArray | None,
    attend: Attend,
) -> tuple[FloatArray, AttentionBlockCache]:
    """Return x with the attention of its norm added; x is (…, n, width)."""
    a, norm = named_norm_forward(x, tensors, "attn_norm", eps)
    (q, k, v), projections = projected(a, tensors, head_width, turn)
    for array in (a, q, k, v):
        array.flags.writeable = False
    out, attended = attend(q, k, v, a)
    added, output = named_linear_forward(_joined(out), tensors, "attn_output")
    added += x
    return added, AttentionBlockCache(norm, projections, turn, attended, output)


def attention_block_backward(
    dout: FloatArray,
    cache: AttentionBlockCache,
    gradients: Gradients,
    attention_backward: Callable[[FloatArray, Any], LayerGradients],
    head_width: int,
) -> FloatArray:
    """Return the gradient of x, and add those of the tensors: the forward's steps, from the last to the first."""
    # forward: x + W_o joined
    djoined = named_linear_backward(dout, cache.output, gradients, "attn_output")
    # forward: joined = attention(R q, R k, v)
    found = attention_backward(_split(djoined, head_width), cache.attended)
    for name, gradient in found.parameters.items():
        gradients.add(name, gradient)
    dq, dk, dv = found.q, found.k, found.v
    # forward: R q, R k
    if cache.turn is not None:
        dq, dk = rotary_backward(dq, cache.turn), rotary_backward(dk, cache.turn)
    # forward: q, k, v = W_q a, W_k a, W_v a
    of_q, of_k, of_v = cache.projections
    da = named_linear_backward(_joined(dq), of_q, gradients, "attn_q")
    da += named_linear_backward(_joined(dk), of_k, gradients, "attn_k")
    da += named_linear_backward(_joined(dv), of_v, gradients, "attn_v")
    if found.a is not None:
        da += found.a
    # forward: a = norm(x)
    dx = named_norm_backward(da, cache.norm, gradients, "attn_norm")
    # forward: x + …
    dx += dout
    return dx


def _split(rows: FloatArray, head_width: int) -> FloatArray:
    """Turn (…, n, heads · d) into a view (…, heads, n, d)."""
    return rows.reshape(*rows.shape[:-1], -1, head_width).swapaxes(-2, -3)


def _joined(heads: FloatArray) -> FloatArray:
    """Turn (…, heads, n, d) into (…, n, heads · d)."""
    heads = heads.swapaxes(-2, -3)
    return heads.reshape(*heads.shape[:-2], -1)
