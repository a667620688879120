"""The tokenizer gives every text back, and cuts it as the model was trained to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refattn.models import GGUFFile, tokenizer_from_gguf

pytest.importorskip("tokenizers", reason="the tokenizers library does the merging")

Write = Callable[..., Path]

TEXTS = {
    "english": "To be, or not to be: that is the question.",
    "contractions": "'tis I'll don't we've O'er",
    "spaces": "  two  three   \t tab\r\n\n\n end ",
    "digits": "1603, 3.14159, 007 and x²",
    "accents": "naïve café Ærøskøbing ångström",
    "scripts": "語言 أهلا здравствуй नमस्ते",
    "emoji": "🎉👩‍👩‍👧‍👦 flag 🇫🇷",
    "controls": "\x00\x01\x7f\u00a0\u200b\ufeff",
    "code": "def f(x):\n    return {x: [x**2]}\n",
    "empty": "",
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_file: GGUFFile) -> Any:
    return tokenizer_from_gguf(smollm2_file)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_decoding_gives_the_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_tiny_vocabulary_of_bytes_gives_the_text_back_too(write_tiny: Write, text: str) -> None:
    tokenizer = tokenizer_from_gguf(write_tiny())
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("To be, or not to be", ["To", "Ġbe", ",", "Ġor", "Ġnot", "Ġto", "Ġbe"]),
        ("in 1603", ["in", "Ġ", "1", "6", "0", "3"]),
        ("x2y", ["x", "2", "y"]),
        ("I'll go\n\nnow", ["I", "'ll", "Ġgo", "Ċ", "Ċ", "now"]),
        ("naïve", ["na", "Ã¯ve"]),
    ],
    ids=["words", "digits-one-by-one", "digit-inside", "contraction-and-lines", "bytes"],
)
def test_known_texts_are_cut_into_known_pieces(tokenizer: Any, text: str, pieces: list[str]) -> None:
    assert tokenizer.encode(text).tokens == pieces


def test_the_ids_are_those_of_the_file(tokenizer: Any, smollm2_file: GGUFFile) -> None:
    vocabulary = smollm2_file.value("tokenizer.ggml.tokens", list)
    assert tokenizer.get_vocab_size() == len(vocabulary) == 49152
    assert [tokenizer.id_to_token(index) for index in range(len(vocabulary))] == vocabulary


def test_special_tokens_are_matched_whole(tokenizer: Any) -> None:
    encoded = tokenizer.encode("<|im_start|>user\nHello<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "user", "Ċ", "Hello", "<|im_end|>"]
    assert (encoded.ids[0], encoded.ids[-1]) == (1, 2)
    assert tokenizer.decode(encoded.ids) == "user\nHello"


def test_gpt2_keeps_digits_together_where_smollm_parts_them(write_tiny: Write) -> None:
    tokens = ["<|start|>", "<|end|>", "1", "2", "12"]
    changes = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1],
        "tokenizer.ggml.merges": ["1 2"],
    }
    parted = tokenizer_from_gguf(write_tiny(**changes)).encode("12").tokens
    kept = tokenizer_from_gguf(write_tiny(**changes, **{"tokenizer.ggml.pre": "gpt-2"})).encode("12").tokens
    assert (parted, kept) == (["1", "2"], ["12"])


@pytest.mark.parametrize(
    ("asked", "pieces"),
    [
        ((), ["the"]),
        (("bos",), ["<|start|>", "the"]),
        (("eos",), ["the", "<|end|>"]),
        (("bos", "eos"), ["<|start|>", "the", "<|end|>"]),
    ],
    ids=["none", "beginning", "end", "both"],
)
def test_text_is_marked_where_the_file_asks_for_it(
    write_tiny: Write, asked: tuple[str, ...], pieces: list[str]
) -> None:
    path = write_tiny(**{f"tokenizer.ggml.add_{name}_token": True for name in asked})
    assert tokenizer_from_gguf(path).encode("the").tokens == pieces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model 'llama' came, 'gpt2'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre 'qwen2' came, one of"),
        ({"tokenizer.ggml.merges": None}, "'tokenizer.ggml.merges' is missing, a list was wanted"),
        ({"tokenizer.ggml.merges": ["t h", "q z"]}, "vocabulary and merges do not fit"),
        ({"tokenizer.ggml.merges": ["th"]}, "vocabulary and merges do not fit"),
        ({"tokenizer.ggml.merges": ["t x"]}, "the merge 't x' is not of two tokens that make a third"),
        ({"tokenizer.ggml.merges": [1, 2]}, "tokenizer.ggml.merges are not all text"),
        ({"tokenizer.ggml.tokens": [1, 2], "tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.tokens are not all"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "holds a token twice"),
        ({"tokenizer.ggml.token_type": [3, 3]}, "2 token types came, one for each of 261"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 999},
            "bos_token_id 999 came, 0 … 260 was wanted",
        ),
    ],
    ids=[
        "model",
        "pre-tokenizer",
        "no-merges",
        "merge-unknown",
        "merge-of-one",
        "merge-without-token",
        "merge-number",
        "token-number",
        "token-twice",
        "types",
        "marker",
    ],
)
def test_a_tokenizer_that_cannot_be_built_says_why(write_tiny: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"tiny\.gguf: .*{message}"):
        tokenizer_from_gguf(write_tiny(**changes))


def test_a_missing_tokenizers_library_is_answered_with_the_command(
    write_tiny: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match="needs tokenizers: python -m pip install tokenizers"):
        tokenizer_from_gguf(path)
