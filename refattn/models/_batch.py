"""A batch of texts, checked: tokens, the tokens that should follow, and how much each of these counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import FloatArray, as_array, as_real_array, require_finite
from refattn.models.config import GPT2Config, LlamaConfig
from refattn.models.token_distribution import TokenDistribution


class Batch(NamedTuple):
    """Tokens and shares of the loss, each (batch, n), which sum to one; m targets a place, and their probabilities."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]  # (batch, n, m)
    probabilities: FloatArray | None  # None: m is 1, and they are one
    shares: NDArray[np.float64]


def as_batch(
    config: LlamaConfig | GPT2Config,
    tokens: ArrayLike,
    targets: ArrayLike | TokenDistribution,
    weights: ArrayLike | None,
) -> Batch:
    """Check the arguments, or raise naming the one that does not fit; a target without weight becomes token 0."""
    texts = _integers("tokens", tokens)
    soft = targets if isinstance(targets, TokenDistribution) else None
    wanted = soft.tokens if soft is not None else _integers("targets", targets)[..., None]
    shape = texts.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tokens: shape {shape} came, (batch, n) with both at least 1 was wanted")
    if isinstance(config, GPT2Config) and shape[1] > config.context_length:
        raise ValueError(f"tokens: {shape[1]} a text came, at most the {config.context_length} positions were wanted")
    if wanted.shape[:-1] != shape:
        raise ValueError(f"targets: shape {wanted.shape[:-1]} came, that of the tokens {shape} was wanted")
    shares = _shares(weights, shape)
    wanted = np.where(shares[..., None] > 0, wanted, 0)
    for name, array in (("tokens", texts), ("targets", wanted)):
        bad = np.argwhere((array < 0) | (array >= config.vocab_size))
        if bad.size:
            place = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"{name}: {array[place]} at index {place[:2]} came, 0 … {config.vocab_size - 1} was wanted"
            )
    return Batch(texts.astype(np.int64), wanted.astype(np.int64), None if soft is None else soft.probabilities, shares)


def _integers(name: str, value: Any) -> NDArray[np.integer]:
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
