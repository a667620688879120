"""The standard streams of a command: what they cannot show degrades, and what they cannot take has its own status.

A character that the stream's encoding lacks is written in plain letters, or as its number. An error of the standard
output (a closed pipe, a full disk) does not end a command, which still writes its files; it is told at the end by
`OUTPUT_ERROR`. A reader that has seen enough, as ``head`` has, is no error where the results went to a file as well.
"""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console

OUTPUT_ERROR = 3
"""Exit status where the standard output or a file could not be written: whatever was computed is not at fault."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""

_PLAIN = {
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∞": "inf", "√": "sqrt ", "·": "*", "×": "x", "−": "-", "–": "-",
    "—": "-", "‖": "||", "′": "'", "…": "...", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "→": "->", "←": "<-",
    "±": "+-", "∈": " in ", "∘": "o", "∂": "d", "∫": "int ", "Σ": "sum ", "⌈": "ceil(", "⌉": ")", "⌊": "floor(",
    "⌋": ")", "⟨": "<", "⟩": ">", "½": "1/2", "¼": "1/4", "°": " deg", "Ỹ": "Y~", "Ŷ": "Y^", "ã": "a~", "ĝ": "g^",
    "ŝ": "s^", "Ẑ": "Z^", "\u0303": "~", "\u0302": "^", "ℓ": "l", "µ": "u",
    **{sign: f"^{plain}" for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹ᵀʳᵗᵋᵖⁿ", "0123456789Trtepn", strict=True)}, "⁻": "^-",
    **{sign: f"_{plain}" for sign, plain in zip("₀₁₂₃", "0123", strict=True)},
}  # fmt: skip


def plain(text: str, encoding: str) -> str:
    r"""Return text that an encoding holds: other characters by name, frames by their shape, the rest by number.

    >>> plain("‖V‖ ≤ 1 │ é", "ascii"), plain("é", "latin-1")
    ('||V|| <= 1 | \\xe9', 'é')
    """
    return "".join(_plain_character(character, encoding) for character in text)


def _plain_character(character: str, encoding: str) -> str:
    with suppress(UnicodeEncodeError):
        character.encode(encoding)
        return character
    if character in _PLAIN:
        return _PLAIN[character]
    name = unicodedata.name(character, "")
    kind = name.rpartition(" ")[2]
    if name.startswith("BOX DRAWINGS"):
        return "+" if " AND " in name else {"HORIZONTAL": "-", "VERTICAL": "|"}.get(kind, "+")
    if name.startswith("GREEK") and "LETTER" in name:
        return kind.capitalize() if character.isupper() else kind.lower()
    return character.encode("ascii", "backslashreplace").decode("ascii")


class Stream:
    """A text stream that takes any character, and that remembers an error in the place of raising it."""

    def __init__(self, inner: TextIO | None) -> None:
        self.inner = inner
        self.error: OSError | None = None if inner is not None else OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.encoding = getattr(inner, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text, plainly where it has to be; after an error nothing is written any more."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush what has been written."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self.inner is not None and self.inner.isatty()

    def _try(self, method: str, *arguments: str) -> None:
        if self.error is not None or self.inner is None:
            return
        try:
            try:
                getattr(self.inner, method)(*arguments)
            except UnicodeEncodeError:
                getattr(self.inner, method)(*(plain(text, self.encoding) for text in arguments))
        except (OSError, ValueError) as error:
            self.error = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
            self._drop_what_is_buffered()

    def _drop_what_is_buffered(self) -> None:
        """Let the rest go nowhere, or the interpreter would try it again when it ends."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.inner.fileno())  # type: ignore[union-attr]
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


_files = 0
"""Files written by this command."""


def note_file() -> None:
    """Note that results are in a file as well."""
    global _files
    _files += 1


@contextmanager
def own_streams() -> Iterator[None]:
    """Run a command with `Stream`s; its exit status is `OUTPUT_ERROR` where the standard output was lost."""
    global _files
    _files, before = 0, (sys.stdout, sys.stderr)
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    except SystemExit as end:
        out.flush()
        if out.error is None or end.code == INTERRUPTED or (_files and out.error.errno == errno.EPIPE):
            raise
        if out.error.errno != errno.EPIPE:
            print(f"refattn: the standard output could not be written: {out.error.strerror}", file=sys.stderr)
        raise SystemExit(OUTPUT_ERROR) from None
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def console(*, stderr: bool = False) -> Console:
    """Return a console on a standard stream, in which text is text: no markup, no codes of pictures."""
    return Console(file=sys.stderr if stderr else sys.stdout, markup=False, emoji=False)
