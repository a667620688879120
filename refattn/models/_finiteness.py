"""Where in a decoder a number is first NaN or infinite."""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray


class NotFiniteError(ArithmeticError):
    """A number in a decoder's forward or backward is NaN or infinite.

    Parameters
    ----------
    layer : str
        Where it was seen first, kept as `layer`: ``"blk.3"``, as tensors are called, ``"output"`` for the loss, or the
        name of the only parameter whose gradient it is.
    what : str
        What it is: the residual stream, say, or the gradient of it; kept as `what`.

    Notes
    -----
    A step of a training that raises it has changed nothing. Source: ours.

    Examples
    --------
    >>> str(NotFiniteError("blk.3", "the residual stream"))
    'blk.3: the residual stream is not finite'
    """

    def __init__(self, layer: str, what: str) -> None:
        super().__init__(f"{layer}: {what} is not finite")
        self.layer, self.what = layer, what

    def __reduce__(self) -> tuple[type[NotFiniteError], tuple[str, str]]:
        """Let it come back from another process."""
        return NotFiniteError, (self.layer, self.what)


def require_finite_in(layer: str, what: str, array: FloatArray) -> None:
    """Raise `NotFiniteError` unless every entry is finite."""
    if not (np.isfinite(array.sum()) or np.isfinite(array).all()):
        raise NotFiniteError(layer, what)
