"""A byte-level BPE tokenizer built from what a GGUF file says about it.

Text is split into words by the pre-tokenizer that ``tokenizer.ggml.pre`` names, each word becomes bytes written as
printable characters, and the file's merges join them into the file's vocabulary. Every text can be encoded, and
decoding gives it back exactly.
"""

from __future__ import annotations

import os
from typing import Any

from refattn.models._reading import needing
from refattn.models.weights import GGUFFile, read_gguf

_DIGITS_APART = {"gpt-2": False, "smollm": True}
"""Pre-tokenizers known by name: GPT-2's expression alone, or after every digit has been made a word of its own."""

_CONTROL = 3
"""The ``tokenizer.ggml.token_type`` of special tokens, which are matched whole and never merged."""


def tokenizer_from_gguf(source: str | os.PathLike[str] | GGUFFile) -> Any:
    """Build a model's tokenizer from its GGUF file.

    Parameters
    ----------
    source : path or GGUFFile
        The file; its vocabulary, merges, token types and pre-tokenizer are used.

    Returns
    -------
    tokenizers.Tokenizer
        ``encode(text).ids`` and ``decode(ids, skip_special_tokens=False)`` are inverse to each other on any text.
        Tokens that mark the beginning or end of a text are added if the file says so (SmolLM2's does not).

    Raises
    ------
    ModuleNotFoundError
        The ``tokenizers`` library is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, or its tokenizer is not a byte-level BPE with a pre-tokenizer known here.

    Notes
    -----
    Time and memory O(vocabulary). Source: ours.

    Examples
    --------
    >>> from refattn.models import smollm2_path
    >>> tokenizer = tokenizer_from_gguf(smollm2_path())  # doctest: +SKIP
    >>> tokenizer.encode("To be, or not to be: 1603").tokens  # doctest: +SKIP
    ['To', 'Ġbe', ',', 'Ġor', 'Ġnot', 'Ġto', 'Ġbe', ':', 'Ġ', '1', '6', '0', '3']
    >>> tokenizer_from_gguf("no-such-file.gguf")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such-file.gguf: no such file, a GGUF weight file was wanted
    """
    file = read_gguf(source)
    with needing("tokenizers", file.path, "its tokenizer"):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    kind = file.value("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise ValueError(f"{file.path}: tokenizer.ggml.model {kind!r} came, 'gpt2' (byte-level BPE) was wanted")
    pre = file.value("tokenizer.ggml.pre", str)
    if pre not in _DIGITS_APART:
        raise ValueError(f"{file.path}: tokenizer.ggml.pre {pre!r} came, one of {sorted(_DIGITS_APART)} was wanted")
    pieces = file.value("tokenizer.ggml.tokens", list)
    types = file.value("tokenizer.ggml.token_type", list)
    if len(types) != len(pieces):
        raise ValueError(f"{file.path}: {len(types)} token types came, one for each of {len(pieces)} tokens was wanted")
    joined = file.value("tokenizer.ggml.merges", list)
    for name, texts in (("tokens", pieces), ("merges", joined)):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{file.path}: tokenizer.ggml.{name} are not all text")
    merges = [tuple(merge.split(" ", 1)) for merge in joined]

    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ValueError(f"{file.path}: tokenizer.ggml.tokens holds a token twice")
    for merge in merges:  # the library ends in a panic, which is no Exception
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            told = f"the merge {' '.join(merge)!r} is not of two tokens that make a third"
            raise ValueError(f"{file.path}: vocabulary and merges do not fit ({told})")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises its own plain Exception
        raise ValueError(f"{file.path}: vocabulary and merges do not fit ({error})") from error
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=file.value("tokenizer.ggml.add_space_prefix", bool, False))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if _DIGITS_APART[pre] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, special=True, normalized=False)
            for piece, token_type in zip(pieces, types, strict=True)
            if token_type == _CONTROL
        ]
    )
    before, after = (_marker(file, name, pieces) for name in ("bos", "eos"))
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(piece, vocabulary[piece]) for piece in {*before, *after}],
        )
    return tokenizer


def _marker(file: GGUFFile, name: str, pieces: list[str]) -> list[str]:
    """Return the token that marks a text's beginning (bos) or end (eos), as a list, empty if the file adds none."""
    if not file.value(f"tokenizer.ggml.add_{name}_token", bool, False):
        return []
    index = file.value(f"tokenizer.ggml.{name}_token_id", int)
    if not 0 <= index < len(pieces):
        raise ValueError(f"{file.path}: tokenizer.ggml.{name}_token_id {index} came, 0 … {len(pieces) - 1} was wanted")
    return [pieces[index]]
