"""A scorer for every layer and key-value head of a decoder, in a small file: which pairs SparseK attention keeps.

    score_t = a_t · weight + slope · t             a: the layer's normalised input, one weight and slope a head

(arXiv 2406.16747, the scoring network; `refattn.sparsek.sparsek_scores`). Shipped for SmolLM2-135M are
``"ridge"`` regression and ``"learned"`` by distillation from there, on texts of 2,048 tokens, ``"long"``, learned on
8,192, each for 256 and for 128 pairs a query, and, for 128, ``"shared"``: the learned scores with another number of
pairs in every layer (`refattn.laboratory.scorers.finetune`). Beside every file stands a manifest that says how it was
made.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._files import sha256_of, write_whole
from refattn._json import read_json
from refattn._kept import kept
from refattn._npz import read_arrays, write_arrays
from refattn._validation import as_option, as_real_array, require_finite

FORMAT = "refattn-scorer/1"
KINDS = ("ridge", "learned", "shared", "long")
BUDGETS = (256, 128)
SHIPPED = tuple((kind, budget) for budget in BUDGETS for kind in KINDS if (kind, budget) != ("shared", 256))
_ARRAYS = ("weight", "slope", "n_select", "window")


@dataclass(frozen=True)
class Scorer:
    """The scoring network of every layer, and how many pairs it is for.

    Parameters
    ----------
    weight : ndarray of float32, shape (L, H_kv, width)
        Linear map of each layer and key-value head.
    slope : ndarray of float32, shape (L, H_kv)
        Score per position.
    n_select : ndarray of int, shape (L,)
        Pairs selected outside the window, by layer.
    window : ndarray of int, shape (L,)
        Pairs in the window, the query's own included.
    manifest : dict, optional
        How it was made; plain data.

    Raises
    ------
    TypeError
        An array is not of numbers.
    ValueError
        Shapes do not fit, an entry is not finite, or a count is negative.

    Notes
    -----
    Memory O(L H_kv width); the arrays are read-only copies. Source: arXiv 2406.16747, its scoring network.

    Examples
    --------
    >>> scorer = load_scorer("learned", 128)
    >>> scorer.weight.shape, scorer.budget
    ((30, 3, 576), 128)
    """

    weight: NDArray[np.float32]
    slope: NDArray[np.float32]
    n_select: NDArray[np.int64]
    window: NDArray[np.int64]
    manifest: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            object.__setattr__(self, name, kept(as_real_array(name, getattr(self, name))))
        if self.weight.ndim != 3 or self.slope.shape != self.weight.shape[:2]:
            raise ValueError(
                f"weight, slope: shapes {self.weight.shape}, {self.slope.shape} came, (L, H_kv, width) and (L, H_kv)"
                " were wanted"
            )
        for name, counts in (("n_select", self.n_select), ("window", self.window)):
            if counts.shape != self.weight.shape[:1] or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
                raise ValueError(f"{name}: {counts!r} came, a count of at least 0 for every layer was wanted")
        for name, array in (("weight", self.weight), ("slope", self.slope)):
            if array.dtype != np.float32:
                raise ValueError(f"{name}: dtype {array.dtype} came, float32 was wanted")
            require_finite(name, array)

    @property
    def budget(self) -> int:
        """Pairs a query attends to at most, the mean of the layers, rounded up."""
        return -(-int((self.n_select + self.window).sum()) // max(len(self.n_select), 1))

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Return weight and slope as the parameters of `SparseKAttention` in a `Decoder`, by their names: copies."""
        return {
            f"blk.{layer}.scorer.{name}": np.array(getattr(self, name)[layer])
            for layer in range(len(self.weight))
            for name in ("weight", "slope")
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` and, beside it with the ending ``.json``, the manifest; each whole or not at all.

        Parameters
        ----------
        path : path
            Of the ``.npz`` file.

        Raises
        ------
        OSError
            A file cannot be written.
        """
        path = Path(path)
        write_arrays(path, {name: getattr(self, name) for name in _ARRAYS})
        about = {"format": FORMAT, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **self.manifest}
        write_whole(path.with_suffix(".json"), json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def read_scorer(path: str | os.PathLike[str]) -> Scorer:
    """Read a scorer and its manifest.

    Parameters
    ----------
    path : path
        The ``.npz`` file; the manifest is beside it, with the ending ``.json``.

    Returns
    -------
    Scorer
        As it was saved.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        It is no scorer, is damaged, or is not the file the manifest is about; the message names it.

    Notes
    -----
    Time and memory O(file). Nothing in it is executed or unpickled. Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "small.npz")
    >>> one = np.ones((1,), np.int64)
    >>> Scorer(np.ones((1, 1, 2), np.float32), np.ones((1, 1), np.float32), one, one).save(path)
    >>> read_scorer(path).budget
    2
    """
    path = Path(path)
    arrays = read_arrays(path, _ARRAYS)
    try:
        with path.with_suffix(".json").open("rb") as about, path.open("rb") as file:
            manifest, digest = read_json(about), sha256_of(file)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"its manifest is not of the format {FORMAT}")
        if manifest.get("sha256") != digest:
            raise ValueError("it is not the file its manifest is about")
        return Scorer(**arrays, manifest=manifest)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a scorer that can be used ({error})") from error


def load_scorer(kind: str = "long", budget: int = 256) -> Scorer:
    """Return a scorer for SmolLM2-135M that is shipped with the package.

    Parameters
    ----------
    kind : {"learned", "long", "shared", "ridge"}, optional
        Fine-tuned on texts of 2,048 tokens, and no good beyond; on 8,192 tokens, better at every length measured; as
        ``"learned"`` with the pairs shared out among the layers, more where they buy more; or the regression that
        training started from.
    budget : {256, 128}, optional
        Pairs a query attends to, in every layer or (``"shared"``, 128 only) in the mean of the layers.

    Returns
    -------
    Scorer
        Of 30 layers with 3 key-value heads each.

    Raises
    ------
    ValueError
        There is no such scorer.

    Notes
    -----
    Time and memory O(file): 0.2 MB. Source: ours.

    Examples
    --------
    >>> load_scorer("ridge", 128).slope.shape
    (30, 3)
    """
    as_option("kind", kind, KINDS)
    budgets = [pairs for name, pairs in SHIPPED if name == kind]
    if budget not in budgets:
        raise ValueError(f"budget: {budget!r} came, for the kind {kind!r} one of {budgets} was wanted")
    return read_scorer(Path(__file__).parent / "data" / f"smollm2-135m-{kind}-{budget}.npz")
