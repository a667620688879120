"""Queries, keys and values of a real model reading a real text, layer by layer, kept from one item to the next.

SmolLM2-135M-Instruct reads Hamlet from Act I, the text of the shipped heads, in float32. The model is let go when its
heads are known: at n = 8,192 they take 1 GB.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np

from refattn._validation import FloatArray
from refattn.dense import dense_attention
from refattn.experiments.conv.figure_setting import positions_of
from refattn.laboratory.smollm2 import hamlet
from refattn.models import Capture, Llama, exact_attention, smollm2_path

LAYERS, HEADS = 30, 9
"""Of SmolLM2-135M; three query heads share a key-value head."""


@lru_cache(maxsize=1)
def captured(n: int, positions: str = "rotary", only: int | None = None) -> Capture:
    """Return what every layer's attention is given, ``q[layer]`` of shape (9, n, 64), k and v (3, n, 64).

    With `only`, of that layer, and no later one is run. `positions` is one of `figure_setting.POSITIONS`. The model's
    warning of positions beyond its training is left out: whoever asks for them has to say so.
    """
    tokens = hamlet(n)
    if len(tokens) < n:
        raise ValueError(f"n: {n} came, at most the text's {len(tokens)} tokens were wanted")
    last = LAYERS - 1 if only is None else only

    def attention(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        return q if layer == last else exact_attention(layer, q, k, v)  # nobody sees what comes after the last

    capture = Capture(attention, layers=None if only is None else [only])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="tokens: .* positions")
        streams = Llama.from_gguf(smollm2_path()).streams(tokens, capture, positions=positions_of(positions, n))
        for entering, _ in enumerate(streams):
            if entering > last:
                break
    return capture


def head(n: int, layer: int, place: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return q, k, v of one query head, each (n, 64)."""
    return head_of(captured(n), layer, place)


def head_of(capture: Capture, layer: int, place: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return q, k, v of one query head of a capture, each (n, 64)."""
    group = place // (HEADS // capture.k[layer].shape[0])
    return capture.q[layer][place], capture.k[layer][group], capture.v[layer][group]


@lru_cache(maxsize=1)
def exact_outputs(n: int, layer: int) -> FloatArray:
    """Return exact attention's outputs of a layer's heads, (9, n, 64)."""
    return np.stack([dense_attention(*head(n, layer, place), method="oracle") for place in range(HEADS)])
