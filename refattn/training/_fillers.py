"""What the synthetic tasks share: texts of fillers in which something is going to be hidden."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import as_count, as_flag


def fillers(
    n_fillers: int, rows: int, n: int, *, seed: int, number: int, held_out: bool
) -> tuple[np.random.Generator, NDArray[np.int64]]:
    """Return the generator of a batch, which follows from the three last arguments, and tokens, shape (rows, n)."""
    seed, number = as_count("seed", seed, least=0), as_count("number", number, least=0)
    rng = np.random.default_rng([seed, int(as_flag("held_out", held_out)), number])
    return rng, rng.integers(n_fillers, size=(as_count("rows", rows, least=1), n))
