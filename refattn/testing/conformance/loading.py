"""A function by its name, as on the command line or in an environment variable (ours)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def load_function(name: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names, perhaps a dotted path; modules of this folder are found too.

    >>> load_function("math:sqrt")(9.0)
    3.0
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"{name!r} came, module:function was wanted")
    here = os.getcwd()
    if here not in sys.path:  # a console script does not look there by itself
        sys.path.insert(0, here)
    found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name!r} came, but {module_name} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name!r} came, which is a {type(found).__name__}; a function was wanted")
    return found  # type: ignore[no-any-return]
