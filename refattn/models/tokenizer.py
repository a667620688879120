"""A byte-level BPE tokenizer built from what a GGUF file says about it.

Text is split into words by the pre-tokenizer that ``tokenizer.ggml.pre`` names, each word becomes bytes written as
printable characters, and the file's merges join them into the file's vocabulary. Decoding gives a text back exactly,
and a text that could not be given back is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from refattn.models._gguf_keys import MARKS, Keys, require_known
from refattn.models._reading import library_reading, needing
from refattn.models.weights import GGUFFile, read_gguf

_DIGITS_APART = {"gpt-2": False, "smollm": True}
"""Pre-tokenizers known by name: GPT-2's expression alone, or after every digit has been made a word of its own."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
"""``tokenizer.ggml.token_type``. Control tokens and those a user defined are matched whole and never merged."""

_KEYS = Keys(
    prefix="tokenizer.",
    used=frozenset(
        f"tokenizer.ggml.{name}"
        for name in (
            "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "add_bos_token",
            "add_eos_token",
        )
    ),
    neutral={
        "tokenizer.ggml.add_space_prefix": (False,),
        "tokenizer.ggml.add_sep_token": (False,),
        "tokenizer.ggml.remove_extra_whitespaces": (False,),
    },
    harmless=(
        re.compile(rf"tokenizer\.ggml\.(scores|token_type_count|({MARKS})_token_id)"),
        re.compile(r"tokenizer\.(huggingface\.json|chat_templates?|chat_template\.[^.]+)"),
    ),
)  # fmt: skip


def tokenizer_from_gguf(source: str | os.PathLike[str] | GGUFFile) -> Any:
    """Build a model's tokenizer from its GGUF file.

    Parameters
    ----------
    source : path or GGUFFile
        The file; its vocabulary, merges, token types and pre-tokenizer are used.

    Returns
    -------
    tokenizers.Tokenizer
        ``encode(text).ids`` and ``decode(ids, skip_special_tokens=False)`` are inverse to each other, but for tokens
        that mark a text's beginning or end, added if the file says so (SmolLM2's does not). A text with a byte that
        has no token is a ``ValueError`` (in SmolLM2's, some control characters). A token's number is its place in the
        file.

    Raises
    ------
    ModuleNotFoundError
        The ``tokenizers`` library is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, or its tokenizer is not a byte-level BPE with a pre-tokenizer known here, asks for what
        is not done here, or could not give texts back: a token or a merge comes twice, an added token would be decoded
        as other text.

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
    require_known(file, "this tokenizer", _KEYS)
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
    if len(set(merges)) != len(merges):
        raise ValueError(f"{file.path}: tokenizer.ggml.merges holds a merge twice")
    added = _added(file, pieces, types)
    for merge in merges:  # the library ends in a panic, which is no Exception
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            told = f"the merge {' '.join(merge)!r} is not of two tokens that make a third"
            raise ValueError(f"{file.path}: vocabulary and merges do not fit ({told})")
    unknown = "no token"
    while unknown in vocabulary:
        unknown += "!"
    with library_reading(file.path, "a vocabulary and its merges"):
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if _DIGITS_APART[pre] else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        for special, add in ((True, tokenizer.add_special_tokens), (False, tokenizer.add_tokens)):
            chosen = [piece for piece, is_special in added.items() if is_special == special]
            add([AddedToken(piece, special=special, normalized=False) for piece in chosen])
        for piece in added:
            ids = tokenizer.encode(piece).ids
            if ids != [vocabulary[piece]] or tokenizer.decode(ids, skip_special_tokens=False) != piece:
                raise ValueError(f"the token {piece!r} would come back as another text")
    before, after = (_marker(file, name, pieces) for name in ("bos", "eos"))
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(piece, vocabulary[piece]) for piece in {*before, *after}],
        )
    for name in ("encode", "encode_batch", "encode_batch_fast"):
        if hasattr(tokenizer, name):
            setattr(tokenizer, name, _refusing(getattr(tokenizer, name), unknown))
    return tokenizer


def _refusing(encode: Callable[..., Any], unknown: str) -> Callable[..., Any]:
    """Let an encoding raise ``ValueError`` where a byte has no token: the library looks for `unknown`, and fails."""

    @wraps(encode)
    def checked(*arguments: Any, **options: Any) -> Any:
        try:
            return encode(*arguments, **options)
        except Exception as error:  # the library raises its own plain Exception
            if f"`{unknown}`" not in str(error):
                raise
            raise ValueError("text: a byte of its UTF-8 has no token in this vocabulary and would be lost") from None

    return checked


def _added(file: GGUFFile, pieces: list[str], types: list[int]) -> dict[str, bool]:
    """Return the tokens that are matched whole, and whether each is special: control, not a user's."""
    known = (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED)
    for piece, kind in zip(pieces, types, strict=True):
        if type(kind) is not int or kind not in known:
            raise ValueError(f"{file.path}: the token {piece!r} is of type {kind!r}, one of {known} was wanted")
        if not piece and kind != _NORMAL:
            raise ValueError(f"{file.path}: an empty token of type {kind} came, which no text has")
    whole = (_UNKNOWN, _CONTROL, _USER_DEFINED)
    return {piece: kind != _USER_DEFINED for piece, kind in zip(pieces, types, strict=True) if kind in whole}


def _marker(file: GGUFFile, name: str, pieces: list[str]) -> list[str]:
    """Return the token that marks a text's beginning (bos) or end (eos), as a list, empty if the file adds none."""
    if not file.value(f"tokenizer.ggml.add_{name}_token", bool, False):
        return []
    index = file.value(f"tokenizer.ggml.{name}_token_id", int)
    if not 0 <= index < len(pieces):
        raise ValueError(f"{file.path}: tokenizer.ggml.{name}_token_id {index} came, 0 … {len(pieces) - 1} was wanted")
    return [pieces[index]]
