"""Tolerances: one table, per dtype, each with its reason (ours).

Always passed by keyword: ``np.testing.assert_allclose(a, b, rtol=tolerance("reordered", dtype).rtol)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._validation import as_named_dtype, as_option


@dataclass(frozen=True)
class Tolerance:
    """A relative tolerance for one dtype, and why it is what it is.

    Attributes
    ----------
    rtol : float
        Largest relative error.
    reason : str
        Where the number comes from.

    Examples
    --------
    >>> from refattn.testing import tolerance
    >>> print(tolerance("reordered").reason)
    the same formula summed in another order: ...
    """

    rtol: float
    reason: str


_TABLE: dict[str, tuple[str, dict[str, float]]] = {
    "reordered": (
        "the same formula summed in another order: a few hundred units of rounding, logits up to 50",
        {"float64": 1e-12, "float32": 2e-4},
    ),
    "rounding": (
        "one or two roundings of the same number",
        {"float64": 1e-15, "float32": 5e-7},
    ),
    "stored": (
        "another implementation, which keeps every intermediate in this dtype: four to eight units of rounding",
        {"float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2},
    ),
    "row": (
        "one row against its own natural size, what it would be with all signs equal: a few thousand roundings in"
        " float64, and a few of results kept in the dtype",
        {"float64": 1e-12, "float32": 5e-7},
    ),
    "differences": (
        "fourth-order central differences with a step of 1e-3, whose own error stays below 1e-8",
        {"float64": 1e-7},
    ),
}


def tolerance(name: str, dtype: Any = np.float64) -> Tolerance:
    """Return the tolerance called `name` for `dtype`.

    Parameters
    ----------
    name : {"reordered", "rounding", "stored", "row", "differences"}
        What is compared.
    dtype : dtype_like, optional
        The precision computed in, float32 or float64; for ``"stored"`` the precision kept in, which may be half.

    Returns
    -------
    Tolerance
        The number and its reason.

    Raises
    ------
    TypeError
        `dtype` names none.
    ValueError
        Unknown name, or no tolerance for that dtype; the known ones are listed.

    Notes
    -----
    Time O(1). Source: ours.

    Examples
    --------
    >>> tolerance("reordered", "float64").rtol
    1e-12
    """
    reason, by_dtype = _TABLE[as_option("name", name, _TABLE)]
    key = as_named_dtype("dtype", dtype).name
    if key not in by_dtype:
        raise ValueError(f"dtype: {key} came, one of {', '.join(by_dtype)} was wanted for {name!r}")
    return Tolerance(by_dtype[key], reason)
