"""Linear maps and norms by the names of their tensors, and where the tensors' gradients are collected.

A map or norm called ``name`` has the tensor ``name.weight`` and perhaps ``name.bias``; a norm with a bias is a
LayerNorm, one without is a norm of the root mean square.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from refattn._validation import FloatArray
from refattn.models.layers.linear import LinearCache, linear_backward, linear_forward
from refattn.models.layers.normalisation import (
    NormCache,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)


class Gradients:
    """Gradients of tensors by name: those that are wanted; a tensor that is used twice gets the sum."""

    def __init__(self, wanted: Collection[str], prefix: str = "", into: dict[str, FloatArray] | None = None) -> None:
        self.wanted, self._prefix = wanted, prefix
        self.found: dict[str, FloatArray] = {} if into is None else into

    def within(self, prefix: str) -> Gradients:
        """Return the same for the tensors whose names begin so, by the rest of their names."""
        return Gradients(self.wanted, self._prefix + prefix, self.found)

    def want(self, name: str) -> bool:
        """Whether the gradient of a tensor is wanted."""
        return self._prefix + name in self.wanted

    def want_any(self, names: Iterable[str]) -> bool:
        """Whether one of the gradients of these tensors is wanted."""
        return any(self.want(name) for name in names)

    def add(self, name: str, gradient: FloatArray | None) -> None:
        """Add what one use of a tensor contributes; None, and what is not wanted, is left aside."""
        full = self._prefix + name
        if gradient is None or full not in self.wanted:
            return
        if full in self.found:
            self.found[full] += gradient
        else:
            self.found[full] = gradient


def within(tensors: Mapping[str, FloatArray], prefix: str) -> dict[str, FloatArray]:
    """Return the tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def named_linear_forward(x: FloatArray, tensors: Mapping[str, FloatArray], name: str) -> tuple[FloatArray, LinearCache]:
    """Map every row."""
    return linear_forward(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def named_linear_backward(dy: FloatArray, cache: LinearCache, gradients: Gradients, name: str) -> FloatArray:
    """Return the gradient of the input, and add those of the tensors."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    found = linear_backward(dy, cache, weight=gradients.want(weight), bias=gradients.want(bias))
    gradients.add(weight, found.weight)
    gradients.add(bias, found.bias)
    return found.x


def named_norm_forward(
    x: FloatArray, tensors: Mapping[str, FloatArray], name: str, eps: float
) -> tuple[FloatArray, NormCache]:
    """Normalise every row."""
    gain, shift = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    return rms_norm_forward(x, gain, eps) if shift is None else layer_norm_forward(x, gain, shift, eps)


def named_norm_backward(dout: FloatArray, cache: NormCache, gradients: Gradients, name: str) -> FloatArray:
    """Return the gradient of the input, and add those of the tensors."""
    found = (rms_norm_backward if cache.mean is None else layer_norm_backward)(dout, cache)
    gradients.add(f"{name}.weight", found.gain)
    gradients.add(f"{name}.bias", found.shift)
    return found.x
