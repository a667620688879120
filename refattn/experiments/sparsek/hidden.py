"""What is hidden in a text and asked for at its end, and whether a model answers (arXiv 2305.16300).

Filler, sentences at relative depths of it, a question and its answer. A trial succeeds if greedy decoding writes the
whole answer. That is read off one forward over all of it: the answer is what greedy decoding writes just if each of its
tokens is the most probable one after those before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.experiments.experiment import Record
from refattn.laboratory.smollm2 import encoded, model

Tokens = NDArray[np.int64]


class Prompt(NamedTuple):
    """Tokens of a text with the answer at its end, and the answer's."""

    tokens: Tokens
    answer: Tokens


def hidden_in(filler: Tokens, n: int, sentences: Iterable[tuple[float, str]], question: str, answer: str) -> Prompt:
    """Return n tokens: as much filler as there is room for, sentences in it, question, answer.

    A depth of 0 is the beginning, of 1 the end of that filler; of sentences at one place the first comes first. A
    ValueError says that there is too little filler, or no room for any.
    """
    hidden = [(depth, encoded(sentence)) for depth, sentence in sentences]
    asked, answered = encoded(question), encoded(answer)
    room = n - len(asked) - len(answered) - sum(len(sentence) for _, sentence in hidden)
    if not 0 < room <= len(filler):
        raise ValueError(f"n: {n} came, room for the sentences and at most {len(filler)} tokens of filler was wanted")
    parts, done = [], 0
    for at, sentence in sorted(((round(depth * room), one) for depth, one in hidden), key=lambda pair: pair[0]):
        parts += [filler[done:at], sentence]
        done = at
    return Prompt(np.concatenate([*parts, filler[done:room], asked, answered]), answered)


def judged(hidden: FloatArray, answer: Tokens) -> Record:
    """Return whether the rows that the answer's logits are made of give it, how many tokens of it, and ``−log p``."""
    logits = model().logits(hidden).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(answer)), answer]
    right = int((logits.argmax(axis=1) == answer).sum())
    return {"success": right == len(answer), "right": right, "loss": float(losses.sum())}
