"""Norms over the width: root mean square (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn._validation import FloatArray


class NormCache(NamedTuple):
    """What a norm's backward needs: its input, the mean (None for RMSNorm) and ``1/√(… + ε)`` of every row, the gain."""

    x: FloatArray
    mean: FloatArray | None
    rate: FloatArray
    gain: FloatArray


class NormGradients(NamedTuple):
    """Gradients of the input, the gain and the shift (None for RMSNorm)."""

    x: FloatArray
    gain: FloatArray
    shift: FloatArray | None


def rms_norm_forward(x: FloatArray, gain: FloatArray, eps: float) -> tuple[FloatArray, NormCache]:
    """``y = x / √(mean x² + ε) ∘ gain``."""
    size = np.einsum("...i,...i->...", x, x)[..., None] / x.dtype.type(x.shape[-1])
    rate = 1 / np.sqrt(size + x.dtype.type(eps))
    out = x * rate
    out *= gain
    return out, NormCache(x, None, rate, gain)


def rms_norm_backward(dout: FloatArray, cache: NormCache) -> NormGradients:
    """Pull a gradient back.

    With ``r = (mean x² + ε)^(−1/2)``, ``u = x r`` and ``du = dy ∘ gain``: ``∂r/∂x_j = −r³ x_j / width``, so

        dx = r du − r³ x mean(du ∘ x) = r (du − u mean(du ∘ u)).
    """
    x, _, rate, gain = cache
    # forward: out *= gain
    u = x * rate
    dgain = np.einsum("ri,ri->i", dout.reshape(-1, dout.shape[-1]), u.reshape(-1, u.shape[-1]))
    dx = dout * gain
    # forward: out = x * rate
    along = np.einsum("...i,...i->...", dx, u)[..., None] / x.dtype.type(x.shape[-1])
    u *= along
    dx -= u
    dx *= rate
    return NormGradients(dx, dgain, None)


def layer_norm_forward(x: FloatArray, gain: FloatArray, shift: FloatArray, eps: float) -> tuple[FloatArray, NormCache]:
    """``y = (x − mean x) / √(variance x + ε) ∘ gain + shift``."""
    mean = x.mean(axis=-1, keepdims=True)
    out = x - mean
    variance = np.einsum("...i,...i->...", out, out)[..., None] / x.dtype.type(x.shape[-1])
    rate = 1 / np.sqrt(variance + x.dtype.type(eps))
    out *= rate
    out *= gain
    out += shift
    return out, NormCache(x, mean, rate, gain)


def layer_norm_backward(dout: FloatArray, cache: NormCache) -> NormGradients:
    """Pull a gradient back.

    With ``c = x − mean x``, ``r = (mean c² + ε)^(−1/2)``, ``u = c r`` and ``du = dy ∘ gain``, c as for the root mean
    square has ``dc = r (du − u mean(du ∘ u))``, and ``dx = dc − mean dc``; the mean of u is zero:

        dx = r (du − mean du − u mean(du ∘ u)).
    """
    x, mean, rate, gain = cache
    # forward: out += shift
    rows = dout.reshape(-1, dout.shape[-1])
    dshift = rows.sum(axis=0)
    # forward: out *= gain
    u = x - mean
    u *= rate
    dgain = np.einsum("ri,ri->i", rows, u.reshape(rows.shape))
    dx = dout * gain
    # forward: out *= rate
    along = np.einsum("...i,...i->...", dx, u)[..., None] / x.dtype.type(x.shape[-1])
    u *= along
    # forward: out = x - mean
    dx -= dx.mean(axis=-1, keepdims=True)
    dx -= u
    dx *= rate
    return NormGradients(dx, dgain, dshift)
