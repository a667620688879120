"""Token files: the tokens of a corpus as they are mapped into memory, and a header that names their tokenizer (ours).

| bytes | what |
|---|---|
| 16 | ``refattn-tokens/1`` |
| 8 | length h of the header, little-endian; 24 + h is a multiple of 64 |
| h | header, JSON: the tokenizer's digest and vocabulary, counts, the tokens' dtype, the corpus, a digest of it all |
| 8 each | where every document ends, int64, counted in tokens; its last token is the tokenizer's end |
| 2 or 4 each | tokens, uint16 or uint32 |

All little-endian. A file is written whole or not at all; one of another length or digest than it says is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._files import replacing
from refattn._json import parsed
from refattn._validation import as_count
from refattn.training.tokenizer import TextTokenizer, tokenizer_digest

_MAGIC = b"refattn-tokens/1"
_ALIGNED = 64
_MOST_HEADER = 1 << 20
_BLOCK = 1 << 20
_FIELDS: Mapping[str, type] = {
    "tokenizer": str, "vocab_size": int, "documents": int, "tokens": int, "dtype": str, "corpus": str, "digest": str,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TokenFile:
    """An open token file.

    Attributes
    ----------
    path : pathlib.Path
        Where it lies.
    tokenizer : str
        Digest of the tokenizer.
    vocab_size : int
        Its tokens.
    corpus : str
        Digest of the texts and of how they were split.
    ends : ndarray of int64, shape (documents,)
        Where every document ends.
    tokens : ndarray of int, shape (n,)
        All documents one after the other, mapped into memory and read-only.

    Examples
    --------
    >>> import tempfile
    >>> from refattn.training import ByteTokenizer
    >>> path = Path(tempfile.mkdtemp(), "two.tokens")
    >>> write_tokens(path, ["To be", "or not"], ByteTokenizer())
    >>> file = open_tokens(path)
    >>> file.ends.tolist(), ByteTokenizer().decode(file.tokens[: file.ends[0]])
    ([6, 13], 'To be')
    """

    path: Path
    tokenizer: str
    vocab_size: int
    corpus: str
    ends: NDArray[np.int64]
    tokens: NDArray[Any]


def write_tokens(
    path: str | os.PathLike[str], texts: Iterable[str], tokenizer: TextTokenizer, *, corpus: str = ""
) -> None:
    """Write the tokens of documents, each with an end, whole or not at all.

    Parameters
    ----------
    path : path
        The file.
    texts : iterable of str
        Documents; at least one.
    tokenizer : TextTokenizer
        Makes the tokens.
    corpus : str, optional
        What `TokenFile.corpus` is to be.

    Raises
    ------
    ValueError
        There is no document.
    OSError
        The file cannot be written.

    Notes
    -----
    Time O(texts); memory O(tokens). Source: ours.

    Examples
    --------
    `TokenFile` shows it:

    >>> write_tokens("unwritten", [], None)
    Traceback (most recent call last):
        ...
    ValueError: texts: none came, at least one document was wanted
    """
    dtype: np.dtype[Any] | None = None
    documents = []
    for text in texts:
        dtype = dtype or np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        documents.append(np.append(tokenizer.encode(text), tokenizer.end).astype(dtype))
    if dtype is None:
        raise ValueError("texts: none came, at least one document was wanted")
    ends = np.cumsum([len(one) for one in documents]).astype("<i8")
    about = {
        "tokenizer": tokenizer_digest(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "documents": len(documents),
        "tokens": int(ends[-1]),
        "dtype": dtype.str,
        "corpus": corpus,
    }
    header = json.dumps({**about, "digest": _digest(about, [ends, *documents])}).encode("utf-8")
    header += b" " * (-(len(_MAGIC) + 8 + len(header)) % _ALIGNED)
    with replacing(path) as file:
        file.write(_MAGIC + struct.pack("<Q", len(header)) + header + ends.tobytes())
        for tokens in documents:
            file.write(tokens.tobytes())


def open_tokens(path: str | os.PathLike[str], tokenizer: TextTokenizer | None = None) -> TokenFile:
    """Open a token file, and map its tokens into memory.

    Parameters
    ----------
    path : path
        The file.
    tokenizer : TextTokenizer, optional
        The one that it has to be of.

    Returns
    -------
    TokenFile
        Read once, for the digest, and then as it is used.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no token file, a truncated or damaged one, or of another tokenizer.

    Notes
    -----
    Time O(file), memory O(documents). Source: ours.

    Examples
    --------
    >>> open_tokens("no-such.tokens")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such.tokens: no such file, a token file was wanted
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, a token file was wanted")
    header, at = _header(path)
    size = at + 8 * header["documents"] + np.dtype(header["dtype"]).itemsize * header["tokens"]
    if path.stat().st_size != size:
        raise ValueError(f"{path}: {path.stat().st_size} bytes came, {size} were wanted: truncated or damaged")
    ends = np.fromfile(path, "<i8", header["documents"], offset=at).astype(np.int64)
    if (ends[:1] < 1).any() or (ends[1:] <= ends[:-1]).any() or ends[-1] != header["tokens"]:
        raise ValueError(f"{path}: ends of documents that do not rise to the number of tokens: damaged")
    if tokenizer is not None and header["tokenizer"] != (wanted := tokenizer_digest(tokenizer)):
        raise ValueError(f"{path}: tokens of tokenizer {header['tokenizer']} came, of {wanted} were wanted")
    tokens = np.memmap(path, header["dtype"], mode="r", offset=at + 8 * header["documents"], shape=(header["tokens"],))
    about = {name: header[name] for name in _FIELDS if name != "digest"}
    blocks = (tokens[start : start + _BLOCK] for start in range(0, len(tokens), _BLOCK))
    if header["digest"] != _digest(about, itertools.chain([ends.astype("<i8")], blocks)):
        raise ValueError(f"{path}: not what was written: damaged")
    return TokenFile(path, header["tokenizer"], header["vocab_size"], header["corpus"], ends, tokens)


def _digest(about: Mapping[str, Any], arrays: Iterable[NDArray[Any]]) -> str:
    whole = hashlib.blake2b(json.dumps(about).encode("utf-8"), digest_size=16)
    for array in arrays:
        whole.update(array.tobytes())
    return whole.hexdigest()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header, checked, and where it ends."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + 8)
        if len(start) < len(_MAGIC) + 8 or not start.startswith(_MAGIC):
            raise ValueError(f"{path}: does not begin with {_MAGIC.decode()!r}, a token file was wanted")
        (length,) = struct.unpack("<Q", start[len(_MAGIC) :])
        if length > _MOST_HEADER:
            raise ValueError(f"{path}: a header of {length} bytes came, at most {_MOST_HEADER} were wanted: damaged")
        content = file.read(length)
    try:
        header = parsed(content)
        if not isinstance(header, dict) or header.keys() != _FIELDS.keys():
            raise ValueError(f"fields {', '.join(_FIELDS)} were wanted")
        for name, kind in _FIELDS.items():
            if type(header[name]) is not kind:
                raise ValueError(f"{name}: {header[name]!r} came, {kind.__name__} was wanted")
        for name in ("documents", "tokens", "vocab_size"):
            as_count(name, header[name], least=1, most=1 << 48)
        if header["dtype"] not in ("<u2", "<u4"):
            raise ValueError(f"dtype: {header['dtype']!r} came, '<u2' or '<u4' was wanted")
    except ValueError as error:
        raise ValueError(f"{path}: a header that cannot be read ({error}): truncated or damaged") from None
    return header, len(start) + length
