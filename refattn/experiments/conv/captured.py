"""Queries, keys and values of a real model reading a real text, layer by layer, kept from one item to the next.

SmolLM2-135M-Instruct reads Hamlet from Act I, the text of the shipped heads, in float32. The model is let go when its
heads are known: at n = 8,192 they take 1 GB.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from refattn._validation import FloatArray
from refattn.dense import dense_attention
from refattn.laboratory.smollm2 import hamlet
from refattn.models import Capture, Llama, smollm2_path

LAYERS, HEADS = 30, 9
"""Of SmolLM2-135M; three query heads share a key-value head."""


@lru_cache(maxsize=1)
def captured(n: int) -> Capture:
    """Return what every layer's attention is given, ``q[layer]`` of shape (9, n, 64), k and v (3, n, 64)."""
    capture = Capture()
    Llama.from_gguf(smollm2_path()).hidden(hamlet(n), capture)
    return capture


def head(n: int, layer: int, place: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return q, k, v of one query head, each (n, 64)."""
    capture = captured(n)
    group = place // (HEADS // capture.k[layer].shape[0])
    return capture.q[layer][place], capture.k[layer][group], capture.v[layer][group]


@lru_cache(maxsize=1)
def exact_outputs(n: int, layer: int) -> FloatArray:
    """Return exact attention's outputs of a layer's heads, (9, n, 64)."""
    return np.stack([dense_attention(*head(n, layer, place), method="oracle") for place in range(HEADS)])
