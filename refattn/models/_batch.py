"""A batch of texts, checked: tokens, the tokens that should follow, and how much each of these counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import as_array, as_real_array, require_finite
from refattn.models.config import GPT2Config, LlamaConfig


class Batch(NamedTuple):
    """Tokens, targets and shares of the loss, each (batch, n); the shares sum to one."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    shares: NDArray[np.float64]


def as_batch(
    config: LlamaConfig | GPT2Config, tokens: ArrayLike, targets: ArrayLike, weights: ArrayLike | None
) -> Batch:
    """Check the arguments, or raise naming the one that does not fit; a target without weight becomes token 0."""
    texts, wanted = _integers("tokens", tokens), _integers("targets", targets)
    shape = texts.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tokens: shape {shape} came, (batch, n) with both at least 1 was wanted")
    if isinstance(config, GPT2Config) and shape[1] > config.context_length:
        raise ValueError(f"tokens: {shape[1]} a text came, at most the {config.context_length} positions were wanted")
    if wanted.shape != shape:
        raise ValueError(f"targets: shape {wanted.shape} came, that of the tokens {shape} was wanted")
    shares = _shares(weights, shape)
    wanted = np.where(shares > 0, wanted, 0)
    for name, array in (("tokens", texts), ("targets", wanted)):
        bad = np.argwhere((array < 0) | (array >= config.vocab_size))
        if bad.size:
            place = tuple(int(i) for i in bad[0])
            raise ValueError(f"{name}: {array[place]} at index {place} came, 0 … {config.vocab_size - 1} was wanted")
    return Batch(texts.astype(np.int64), wanted.astype(np.int64), shares)


def _integers(name: str, value: ArrayLike) -> NDArray[np.integer]:
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {array.dtype} came, integers were wanted")
    return array


def _shares(weights: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the weights, or ones, divided by their sum."""
    if weights is None:
        return np.full(shape, 1 / np.prod(shape))
    came = as_array("weights", weights)
    given = (came if came.dtype.kind == "b" else as_real_array("weights", came)).astype(np.float64)
    require_finite("weights", given)
    if given.shape != shape:
        raise ValueError(f"weights: shape {given.shape} came, that of the targets {shape} was wanted")
    if given.min() < 0:
        place = tuple(int(i) for i in np.argwhere(given < 0)[0])
        raise ValueError(f"weights: {given[place]} at index {place} came, at least 0 was wanted")
    if not given.any():
        raise ValueError("weights: only zeros came, a target that counts was wanted")
    shares = given / given.max()  # so that their sum cannot overflow
    return np.asarray(shares / shares.sum())
