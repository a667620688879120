"""Text that the scorers are fitted on, and text that is held out: essays, told apart by name.

Held out are the three longest essays, which have room for long windows, and the essay of the ledger's other rows about
this model; every other essay is for fitting. A window is a run of n tokens of one essay, from a multiple of n on; the
rest of an essay is left. No essay for fitting has 8,192 tokens: windows so long are taken from all of them, joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.laboratory.smollm2 import essay
from refattn.models import essays

HELD_OUT = ("worked", "popular", "gap", "useful")
JOINED = "every essay for fitting"
"""Stands for the essays that are not held out, one after the other in alphabetical order."""


class Window(NamedTuple):
    """So many tokens of an essay, or of `JOINED`, from one on."""

    text: str
    start: int
    n: int


@cache
def tokens_of(text: str) -> NDArray[np.int64]:
    """Return the tokens of an essay, or of `JOINED`."""
    return np.concatenate([essay(one) for one in fitting_texts()]) if text == JOINED else essay(text)


def window_tokens(window: Window) -> NDArray[np.int64]:
    """Return the tokens of a window; a ValueError says that the text is not so long."""
    found = tokens_of(window.text)[window.start : window.start + window.n]
    if len(found) < window.n:
        raise ValueError(f"window: the essay {window.text!r} ends before token {window.start + window.n}")
    return found


def fitting_texts() -> list[str]:
    """Return the essays that are not held out, in alphabetical order."""
    return [text for text in sorted(essays()) if text not in HELD_OUT]


def fitting_windows(n: int = 2048, *, per_text: int = 1) -> list[Window]:
    """Return the first windows of every essay that is not held out, in alphabetical order."""
    return [window for text in fitting_texts() for window in list(_windows(text, n))[:per_text]]


def joined_windows(n: int = 8192) -> list[Window]:
    """Return every window of the essays that are not held out, joined."""
    return list(_windows(JOINED, n))


def held_out_windows(n: int = 2048) -> list[Window]:
    """Return every window of the essays that are held out."""
    return [window for text in HELD_OUT for window in _windows(text, n)]


def _windows(text: str, n: int) -> Iterator[Window]:
    return (Window(text, start, n) for start in range(0, len(tokens_of(text)) - n + 1, n))
