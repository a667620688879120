"""JSON that others wrote: the one place where it is parsed, short enough, and every field once.

Python's parser keeps the last of two fields of one name and says nothing, and what it makes of a text takes up to
thirty times the text's length.
"""

from __future__ import annotations

import json
from typing import IO, Any

MOST_BYTES = 2 << 20
"""Longest text that is parsed: what it becomes takes less than 64 MB."""


def parsed(content: bytes, *, most: int = MOST_BYTES) -> Any:
    """Return what JSON in UTF-8 says, or raise ``ValueError`` saying why not.

    >>> parsed(b'{"n": [1, 2]}')
    {'n': [1, 2]}
    >>> parsed(b'{"n": 1, "n": 2}')
    Traceback (most recent call last):
        ...
    ValueError: the field 'n' comes twice
    """
    if len(content) > most:
        raise ValueError(f"JSON of more than {most} bytes came")
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: IO[bytes], *, most: int = MOST_BYTES) -> Any:
    """Return what an open file says; no more than `most` bytes of it are read."""
    return parsed(file.read(most + 1), most=most)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"the field {twice[:60]!r} comes twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
