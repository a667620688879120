"""The second half of a layer: norm, two maps with a bend between them, and back onto the residual stream.

b = norm(x)        x + W_down (silu(W_gate b) ∘ W_up b)    or, without a gate,    x + W_down gelu(W_up b)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray
from refattn.models.layers.feed_forward import (
    GELUCache,
    SwiGLUCache,
    gelu_backward,
    gelu_forward,
    swiglu_backward,
    swiglu_forward,
)
from refattn.models.layers.linear import LinearCache
from refattn.models.layers.named import (
    Gradients,
    named_linear_backward,
    named_linear_forward,
    named_norm_backward,
    named_norm_forward,
)
from refattn.models.layers.normalisation import NormCache


class FeedForwardBlockCache(NamedTuple):
    """What `feed_forward_block_backward` needs: the cache of every step; `gate` is None where there is none."""

    norm: NormCache
    gate: LinearCache | None
    up: LinearCache
    bend: SwiGLUCache | GELUCache
    down: LinearCache


@one_blas_thread()  # once for all its products
def feed_forward_block_forward(
    x: FloatArray, tensors: Mapping[str, FloatArray], eps: float
) -> tuple[FloatArray, FeedForwardBlockCache]:
    """Return x with the feed-forward of its norm added."""
    b, norm = named_norm_forward(x, tensors, "ffn_norm", eps)
    of_gate: LinearCache | None = None
    bend: SwiGLUCache | GELUCache
    if "ffn_gate.weight" in tensors:
        gate, of_gate = named_linear_forward(b, tensors, "ffn_gate")
        up, of_up = named_linear_forward(b, tensors, "ffn_up")
        inner, bend = swiglu_forward(gate, up)
    else:
        up, of_up = named_linear_forward(b, tensors, "ffn_up")
        inner, bend = gelu_forward(up)
    added, down = named_linear_forward(inner, tensors, "ffn_down")
    added += x
    return added, FeedForwardBlockCache(norm, of_gate, of_up, bend, down)


def feed_forward_block_backward(dout: FloatArray, cache: FeedForwardBlockCache, gradients: Gradients) -> FloatArray:
    """Return the gradient of x, and add those of the tensors: the forward's steps, from the last to the first."""
    # forward: x + W_down inner
    dinner = named_linear_backward(dout, cache.down, gradients, "ffn_down")
    if isinstance(cache.bend, GELUCache):
        # forward: inner = gelu(W_up b)
        db = named_linear_backward(gelu_backward(dinner, cache.bend), cache.up, gradients, "ffn_up")
    else:
        assert cache.gate is not None
        # forward: inner = silu(W_gate b) ∘ W_up b
        dgate, dup = swiglu_backward(dinner, cache.bend)
        db = named_linear_backward(dgate, cache.gate, gradients, "ffn_gate")
        db += named_linear_backward(dup, cache.up, gradients, "ffn_up")
    # forward: b = norm(x)
    dx = named_norm_backward(db, cache.norm, gradients, "ffn_norm")
    # forward: x + …
    dx += dout
    return dx
