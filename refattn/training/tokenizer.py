"""Tokenizers that training makes: bytes as they are, and byte-level BPE trained on the texts at hand.

Both encode every text, and decoding gives it back. The number after the last token of a text stands for the end of a
document; no text can hold it, whatever is written in it. BPE (Sennrich, Haddow and Birch 2016, arXiv 1508.07909, over
bytes as in GPT-2) is trained and applied by the ``tokenizers`` library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._files import write_whole
from refattn._json import parsed
from refattn._needs import missing
from refattn._validation import as_count

_BYTES = 256
"""The least vocabulary of byte-level BPE, without the end."""

_MOST_BYTES = 64 << 20
"""Of a tokenizer as JSON: that of a vocabulary of 50,000 takes 4 MB."""


class TextTokenizer(Protocol):
    """What training needs of a tokenizer.

    Attributes
    ----------
    end : int
        Stands for the end of a document; the largest token.
    vocab_size : int
        Tokens, the end included.
    text : str
        The tokenizer as JSON: what `read_tokenizer` reads.

    Examples
    --------
    >>> ByteTokenizer().vocab_size
    257
    """

    end: int
    vocab_size: int
    text: str

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the tokens of a text, without an end.

        Parameters
        ----------
        text : str
            Any text.
        """

    def decode(self, tokens: ArrayLike) -> str:
        """Return the text of tokens; ends give nothing, and bytes that are no UTF-8 the replacement character.

        Parameters
        ----------
        tokens : array_like of int, shape (n,)
            Such as a model generates.
        """


class ByteTokenizer:
    """Every byte of a text in UTF-8 is a token; 256 is the end of a document.

    Attributes
    ----------
    end, vocab_size, text : int, int, str
        As for `TextTokenizer`.

    Notes
    -----
    O(text). Source: ours.

    Examples
    --------
    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("né").tolist()
    [110, 195, 169]
    >>> tokenizer.decode([110, 195, 169, 256])
    'né'
    """

    def __init__(self) -> None:
        self.end, self.vocab_size, self.text = _BYTES, _BYTES + 1, json.dumps({"kind": "bytes"})

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the bytes of a text.

        Parameters
        ----------
        text : str
            Any text.
        """
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64)

    def decode(self, tokens: ArrayLike) -> str:
        """Return the text of tokens.

        Parameters
        ----------
        tokens : array_like of int, shape (n,)
            As for `TextTokenizer`.
        """
        return bytes(_texts_tokens(tokens, self.end)).decode("utf-8", errors="replace")


class BPETokenizer:
    """A tokenizer of the ``tokenizers`` library, and an end of a document that it does not know.

    Parameters
    ----------
    text : str
        As JSON; what `train_bpe` gives has it.

    Attributes
    ----------
    end, vocab_size, text : int, int, str
        As for `TextTokenizer`.

    Raises
    ------
    ModuleNotFoundError
        The ``tokenizers`` library is not installed.
    ValueError
        The text is not such a tokenizer.

    Notes
    -----
    O(text). Source: arXiv 1508.07909, on bytes.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> tokenizer = train_bpe(["to be or not to be"], 260) if find_spec("tokenizers") else ByteTokenizer()
    >>> tokenizer.decode(tokenizer.encode("to be"))
    'to be'
    """

    def __init__(self, text: str) -> None:
        library = _library()
        try:
            said = parsed(text.encode("utf-8"), most=_MOST_BYTES)["tokenizer"]
            self._tokenizer = library.Tokenizer.from_str(json.dumps(said))
        except Exception as error:  # the library raises its own plain Exception
            raise ValueError(f"text: cannot be read ({error}); the JSON of a BPE tokenizer was wanted") from error
        self.text, self.end = text, int(self._tokenizer.get_vocab_size())
        self.vocab_size = self.end + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the tokens of a text.

        Parameters
        ----------
        text : str
            Any text.
        """
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, tokens: ArrayLike) -> str:
        """Return the text of tokens.

        Parameters
        ----------
        tokens : array_like of int, shape (n,)
            As for `TextTokenizer`.
        """
        return str(self._tokenizer.decode(_texts_tokens(tokens, self.end), skip_special_tokens=False))


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Train byte-level BPE: merge the most frequent pair of tokens until there are enough.

    Parameters
    ----------
    texts : iterable of str
        Those for training only: what is held out must not shape the vocabulary.
    vocab_size : int
        Tokens wanted, the end included; at least 257. There are fewer if nothing is left to merge.

    Returns
    -------
    BPETokenizer
        The tokenizer.

    Raises
    ------
    ModuleNotFoundError
        The ``tokenizers`` library is not installed.
    TypeError, ValueError
        `vocab_size` is not such a count.

    Notes
    -----
    Time O(texts + vocab_size · log). Source: arXiv 1508.07909, on bytes.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> find_spec("tokenizers") is None or len(train_bpe(["to be or not to be"], 260).encode("to be")) < 5
    True
    """
    vocab_size = as_count("vocab_size", vocab_size, least=_BYTES + 1)
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BPETokenizer(json.dumps({"kind": "bpe", "tokenizer": json.loads(tokenizer.to_str())}))


def tokenizer_digest(tokenizer: TextTokenizer) -> str:
    """Return sixteen hexadecimal digits that tell tokenizers apart."""
    return hashlib.sha256(tokenizer.text.encode("utf-8")).hexdigest()[:16]


def write_tokenizer(path: str | os.PathLike[str], tokenizer: TextTokenizer) -> None:
    """Write a tokenizer as JSON, whole or not at all."""
    write_whole(path, tokenizer.text + "\n")


def read_tokenizer(path: str | os.PathLike[str]) -> TextTokenizer:
    """Read what `write_tokenizer` wrote; a ValueError names the file and says what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
        kind = parsed(text.encode("utf-8"), most=_MOST_BYTES)["kind"]
        if kind not in ("bytes", "bpe"):
            raise ValueError(f"kind {kind!r} came, 'bytes' or 'bpe' was wanted")
        return ByteTokenizer() if kind == "bytes" else BPETokenizer(text)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a tokenizer ({error})") from None


def _texts_tokens(tokens: ArrayLike, end: int) -> list[int]:
    """Return the tokens that are not ends, checked."""
    found = np.asarray(tokens)
    if found.size and (found.ndim != 1 or found.dtype.kind not in "iu"):
        raise TypeError(f"tokens: shape {found.shape} of {found.dtype} came, whole numbers in one axis were wanted")
    if found.size and not 0 <= found.min() <= found.max() <= end:
        raise ValueError(f"tokens: {found.min()} … {found.max()} came, 0 … {end} was wanted")
    return [int(token) for token in found if token != end]


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise missing("a BPE tokenizer", "tokenizers") from error
    return tokenizers
