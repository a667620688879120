"""Arrays of other libraries: to them, back, and their automatic gradients (ours)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._needs import missing, not_there
from refattn._validation import as_array, as_option

LIBRARIES = ("numpy", "torch", "jax")


def require_library(library: str, dtype: str) -> None:
    """Refuse arrays that cannot be made here: that is nobody's kernel's fault."""
    if absent := not_there([as_option("arrays", library, LIBRARIES)]):
        raise missing(f"arrays: {library!r}", *absent)
    if library == "jax" and dtype == "float64" and not importlib.import_module("jax").config.jax_enable_x64:
        raise ValueError("dtype: float64 came while JAX has it switched off; set JAX_ENABLE_X64=1")
    if library == "numpy" and dtype == "bfloat16" and not_there(["ml_dtypes"]):
        raise missing("dtype: 'bfloat16' in NumPy's arrays (arrays='torch' and 'jax' have it)", "ml_dtypes")


def to_library(array: NDArray[Any], library: str, dtype: str) -> Any:
    """Return an array of the library and dtype asked for; its values are exactly those of `array`, or rounded."""
    if library == "torch":
        torch: Any = importlib.import_module("torch")
        return torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, dtype))
    if library == "jax":
        return importlib.import_module("jax.numpy").asarray(array, dtype=dtype)
    if dtype == "bfloat16":
        return np.ascontiguousarray(array.astype(importlib.import_module("ml_dtypes").bfloat16))
    return np.ascontiguousarray(array.astype(dtype, copy=False))


def to_numpy(result: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return a copy of a function's result, an array that NumPy computes with, and the name of the dtype it came in.

    The function may fill its own array again at the next call.
    """
    if hasattr(result, "detach"):  # PyTorch: out of the graph, and off another device
        result = result.detach().cpu()
    dtype = str(getattr(result, "dtype", "float64")).rpartition(".")[2]
    if dtype == "bfloat16" and hasattr(result, "float"):  # PyTorch's has no NumPy counterpart
        result = result.float()
    array = np.array(as_array(name, result))
    return (array.astype(np.float32) if dtype == "bfloat16" else array), dtype


def torch_autograd(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return the backward of a function of PyTorch tensors, by PyTorch's autograd.

    ``backward(dout, *inputs, **options)`` returns a gradient for every input.
    """
    torch: Any = importlib.import_module("torch")

    def backward(dout: Any, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        leaves = [x.detach().requires_grad_(True) for x in inputs]
        return tuple(torch.autograd.grad(function(*leaves, **options), leaves, dout))

    return _takes_what(backward, function)


def jax_vjp(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return the backward of a function of JAX arrays, by ``jax.vjp``; otherwise as `torch_autograd`."""
    jax: Any = importlib.import_module("jax")

    def backward(dout: Any, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        out, pullback = jax.vjp(lambda *arrays: function(*arrays, **options), *inputs)
        return tuple(pullback(dout.astype(out.dtype)))

    return _takes_what(backward, function)


def _takes_what(backward: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the backward be asked for the options it takes: those of the function."""
    backward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return backward
