"""Which sources are installed: the commit that they were checked out at, and a digest of every file of the package."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
_CACHES = ("__pycache__",)


def sources() -> dict[str, Any]:
    """Return ``commit`` and ``changed`` (whether files differ from it), None outside a checkout, and ``digest``."""
    return dict(_sources())


@cache
def _sources() -> tuple[tuple[str, Any], ...]:
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", "_sources.py") else ""
    changed = bool(_git("status", "--porcelain", "--", ".")) if commit else None
    return ("commit", commit or None), ("changed", changed), ("digest", digest_of_files(PACKAGE))


def digest_of_files(folder: Path) -> str:
    """Return a digest of the files in a folder, their names and contents, but for caches: the same in a wheel.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.py").write_text("x = 1")
    >>> digest_of_files(folder)
    '1c1dc54c6a93'
    """
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        if file.is_file() and not {*_CACHES} & {*file.parts}:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            whole.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()[:12]


def _git(*arguments: str) -> str:
    """Return what git says about the folder of the package, nothing where it cannot say anything."""
    try:
        said = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()
