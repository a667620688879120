"""Greedy generation, one token at a time, with an attention that remembers (ours).

The prompt is one chunk, every new token another; a chunk's position is where the one before it ended. What the model
knows of earlier chunks is what the attention keeps: nothing else is stored, and no earlier token is computed again.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray, as_array, as_count
from refattn.models.llama import Llama


class RememberingAttention(Protocol):
    """An attention and observer that keep what later tokens need of a layer; see `GeneratingAttention`.

    Examples
    --------
    >>> from refattn.models import GeneratingAttention
    >>> all(hasattr(GeneratingAttention, name) for name in ("__call__", "observe"))
    True
    """

    @property
    def position(self) -> int:
        """Tokens taken in so far."""

    def observe(self, layer: int, a: FloatArray) -> None:
        """See a layer's normalised input of the new tokens.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Take in the new tokens' keys and values, and return the attention of their queries."""


def generate(model: Llama, tokens: ArrayLike, n_new: int, attention: RememberingAttention) -> list[int]:
    """Continue a text with the most probable token, again and again.

    Parameters
    ----------
    model : Llama
        The decoder.
    tokens : array_like of int, shape (n,)
        What is new since the attention's last token: the whole prompt if it has seen nothing.
    n_new : int
        Tokens wanted; at least 0.
    attention : RememberingAttention
        Holds the past. It has taken in all but the last of the new tokens when this returns.

    Returns
    -------
    list of int
        The new tokens; ties go to the smaller number.

    Raises
    ------
    TypeError, ValueError
        As `Llama.hidden`; or `n_new` is not such a number.

    Notes
    -----
    A step costs one row of the model, O(layers · width · ffn_width), and one query's attention. Source: ours.

    Examples
    --------
    With made-up weights; below, with those of SmolLM2:

    >>> import numpy as np
    >>> from refattn.models import GeneratingAttention, Llama, LlamaConfig, Scorer
    >>> config = LlamaConfig(n_layers=1, width=4, ffn_width=8, vocab_size=9, n_heads=2, n_kv_heads=1, head_width=2,
    ...                      context_length=64, rope_base=1e4, norm_eps=1e-5)
    >>> rng = np.random.default_rng(0)
    >>> weights = {name: rng.standard_normal(shape) for name, shape in config.tensor_shapes().items()}
    >>> four = np.full(1, 4)
    >>> scorer = Scorer(np.ones((1, 1, 4), np.float32), np.zeros((1, 1), np.float32), four, four)
    >>> len(generate(Llama(config, weights), [1, 2, 3], 5, GeneratingAttention(scorer)))
    5
    >>> from refattn.models import Llama, smollm2_path, tokenizer_from_gguf, load_scorer, GeneratingAttention
    >>> tokenizer = tokenizer_from_gguf(smollm2_path())  # doctest: +SKIP
    >>> model, attention = Llama.from_gguf(smollm2_path()), GeneratingAttention(load_scorer())  # doctest: +SKIP
    >>> new = generate(model, tokenizer.encode("The capital of France is").ids, 1, attention)  # doctest: +SKIP
    >>> tokenizer.decode(new)  # doctest: +SKIP
    ' Paris'
    """
    chunk, new = as_array("tokens", tokens), list[int]()
    for _ in range(as_count("n_new", n_new, least=0)):
        hidden = model.hidden(chunk, attention, observe=attention.observe, start=attention.position)
        new.append(int(model.logits(hidden[-1:])[0].argmax()))
        chunk = np.array(new[-1:])
    return new
