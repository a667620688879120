"""A dtype is read or refused by name; what a library raises is one line; a text comes back or its file is refused."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from refattn.models import encoder_tokenizer, read_gguf, read_safetensors, smollm2_path, tokenizer_from_gguf

# Safetensors


def written(tmp_path, dtype, content, shape):
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path


def halves_of(numbers):
    return (np.array(numbers, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


BF16 = [1.5, -2.25, 0.0, -0.0, np.inf, 2.0**-133, 3.0e38, 1.0]


@pytest.mark.parametrize("ml_dtypes", [False, True], ids=["alone", "beside-ml_dtypes"])
def test_bfloat16_is_read_exactly_whatever_is_imported(ml_dtypes, tmp_path, monkeypatch):
    if ml_dtypes:
        monkeypatch.setitem(sys.modules, "ml_dtypes", types.ModuleType("ml_dtypes"))
    numbers = (np.array(BF16, "f4").view("u4") >> 16 << 16).view("f4")
    found = read_safetensors(written(tmp_path, "BF16", halves_of(BF16), [2, 4]))["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view("u4"), numbers.reshape(2, 4).view("u4"))


def test_bfloat16_longer_than_a_piece_is_read(tmp_path):
    numbers = np.arange(3_000_001, dtype="f4") % 256
    found = read_safetensors(written(tmp_path, "BF16", halves_of(numbers), [3_000_001]))["w"]
    np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"])
def test_every_dtype_that_numpy_has_comes_back(dtype, tmp_path):
    kind = {"F": "f", "I": "i", "U": "u", "B": "?"}[dtype[0]] + (str(int(dtype[1:]) // 8) if dtype != "BOOL" else "")
    array = np.array([[0, 1, 1], [1, 0, 1]], kind)
    found = read_safetensors(written(tmp_path, dtype, array.tobytes(), [2, 3]))["w"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "f32", "float32", ""])
def test_another_dtype_is_refused_by_its_name(dtype, tmp_path):
    with pytest.raises(ValueError, match=f"tensor 'w' is of dtype '{dtype}', one of F64") as refusal:
        read_safetensors(written(tmp_path, dtype, b"\x38\x40", [2]))
    assert "damaged" not in str(refusal.value)


def test_what_the_library_writes_is_read_as_the_library_reads_it(tmp_path):
    save = pytest.importorskip("safetensors.numpy", reason="the library writes and reads the file")
    rng = np.random.default_rng(0)
    arrays = {
        f"x.{i}": rng.standard_normal((i, 3)).astype(kind) for i, kind in enumerate(("f8", "f4", "f2", "i4", "u1"))
    }
    save.save_file(arrays, tmp_path / "w.safetensors", metadata={"format": "np"})
    found, right = read_safetensors(tmp_path / "w.safetensors"), save.load_file(tmp_path / "w.safetensors")
    assert found.keys() == right.keys()
    for name, array in right.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


# GGUF


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_every_type_of_tensor_is_the_librarys_number_for_number(name, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the library quantises and dequantises")
    kind = gguf.GGMLQuantizationType[name]
    array = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float64 if name == "F64" else np.float32)
    raw = array if name == "F64" else gguf.quants.quantize(array, kind)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=None if name == "F64" else kind)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    file = read_gguf(tmp_path / "t.gguf")
    right = array if name == "F64" else gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(file.tensor("w"), right.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(file.records["w"].data), raw)


# Tokenizers


def alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.fixture
def tokenizer(tmp_path):
    """Builds one from tokens beside the 256 bytes, types of these tokens, merges, and other keys."""
    gguf = pytest.importorskip("gguf", reason="the library writes the file")
    pytest.importorskip("tokenizers", reason="the library cuts texts")

    def build(more=(), types_=None, merges=("t h",), without=(), **keys):
        tokens = [one for one in alphabet() if one not in without] + [*more]
        writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (len(tokens) - len(more)) + list(types_ or [1] * len(more)))
        if merges is not None:
            writer.add_token_merges(list(merges))
        for key, value in keys.items():
            {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)](
                f"tokenizer.ggml.{key}", value
            )
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(writer, step)()
        return tokenizer_from_gguf(tmp_path / "t.gguf"), tokens

    return build


TEXT = "the <x>azb</x> \x00\x7f 12 naïve 語言 🎉\n\t  end"


@pytest.mark.parametrize("special", [2, 3, 4], ids=["unknown", "control", "user-defined"])
def test_an_added_token_is_matched_whole_and_every_text_comes_back(special, tokenizer):
    built, tokens = tokenizer(["th", "<x>", "</x>", "  ", "a<x>"], [1, special, special, special, special])
    for text in (TEXT, "a<x>b", "<x", "<x><x>", "   x", "<x>" * 3 + "</x", ""):
        assert built.decode(built.encode(text).ids, skip_special_tokens=False) == text
    assert [tokens[i] for i in built.encode("b<x>").ids] == ["b", "<x>"]
    assert [tokens[i] for i in built.encode("a<x>").ids] == ["a<x>"]
    assert built.get_vocab_size() == len(tokens)
    assert [built.id_to_token(i) for i in range(len(tokens))] == tokens


LOST = {"z": "z", "space": "Ġ", "newline": "Ċ", "nul": "Ā", "first-byte-of-é": "Ã", "a-byte-of-emoji": "Ł"}


@pytest.mark.parametrize("character", LOST.values(), ids=LOST)
def test_a_text_with_a_byte_that_has_no_token_is_refused_and_others_come_back(character, tokenizer):
    built, _ = tokenizer(["th"], without=[character])
    lost = bytes([alphabet().index(character)])
    text = {b"\xc3": "naïve é", b"\x9f": "a 🎉"}.get(lost) or f"a{lost.decode()}b"
    for encode in (
        lambda: built.encode(text),
        lambda: built.encode("th", text),
        lambda: built.encode_batch(["a", text]),
    ):
        with pytest.raises(ValueError, match="text: a byte of its UTF-8 has no token"):
            encode()
    assert built.decode(built.encode("the_end").ids) == "the_end"


@pytest.mark.slow
def test_smollm2_refuses_the_control_characters_that_it_has_no_tokens_for():
    pytest.importorskip("gguf", reason="the library knows the types of tensors")
    pytest.importorskip("tokenizers", reason="the library cuts texts")
    try:
        built = tokenizer_from_gguf(smollm2_path())
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    for code in (*range(0x250), 0x1F389, 0x3FFFD, 0x40000, 0xE0067, 0x10FFFD):
        text = f"a {chr(code)}b"
        if code in (4, 6, 0x13, 0x14, 0x16, 0x1D, 0x40000):
            with pytest.raises(ValueError, match="has no token"):
                built.encode(text)
        else:
            assert built.decode(built.encode(text).ids, skip_special_tokens=False) == text


def test_bytes_that_no_text_has_may_be_missing(tokenizer):
    built, _ = tokenizer(["th"], without=[alphabet()[byte] for byte in (0xC0, 0xC1, *range(0xF5, 256))])
    assert built.decode(built.encode(TEXT).ids, skip_special_tokens=False) == TEXT


REFUSED = {
    "token-twice": ({"more": ["th", "a"]}, "holds a token twice"),
    "merge-twice": ({"more": ["th"], "merges": ["t h", "t h"]}, "holds a merge twice"),
    "merge-without-its-token": ({"merges": ["t h"]}, "the merge 't h' is not of two tokens"),
    "merge-with-two-spaces": ({"more": ["th"], "merges": ["t  h"]}, "the merge 't  h' is not of two tokens"),
    "no-merges": ({"more": ["th"], "merges": None}, "merges' is missing"),
    "byte-token": ({"more": ["th", "<0x41>"], "types_": [1, 6]}, "is of type 6"),
    "type-0": ({"more": ["th"], "types_": [0]}, "is of type 0"),
    "type-unknown": ({"more": ["th"], "types_": [7]}, "is of type 7"),
    "empty-control": ({"more": ["th", ""], "types_": [1, 3]}, "an empty token of type 3"),
    "decoded-as-another-text": ({"more": ["th", "đem"], "types_": [1, 4]}, "'đem' would come back as another text"),
    "latin-letter": ({"more": ["th", "ilÖve"], "types_": [1, 3]}, "'ilÖve' would come back as another text"),
    "space-in-front": ({"more": ["th"], "add_space_prefix": True}, "add_space_prefix' is True, False was wanted"),
    "spaces-taken-away": ({"more": ["th"], "remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    "separator": ({"more": ["th"], "add_sep_token": True}, "add_sep_token"),
    "a-map-of-characters": ({"more": ["th"], "precompiled_charsmap": "x"}, "precompiled_charsmap"),
    "an-unknown-key": ({"more": ["th"], "normaliser": "nfc"}, "normaliser"),
    "bos-as-a-number": ({"more": ["th"], "add_bos_token": 1}, "add_bos_token"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_would_lose_or_change_a_text_is_refused(change, message, tokenizer):
    with pytest.raises(ValueError, match=rf"t\.gguf: .*{message}"):
        tokenizer(**change)


def test_other_errors_of_the_library_come_through_an_encoding(tokenizer):
    built, _ = tokenizer(["th"])
    with pytest.raises(TypeError):
        built.encode(7)


class PanicException(BaseException):
    """As a Rust library's: no Exception."""


def test_a_panic_of_the_library_is_one_clear_line(tokenizer, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers", reason="the library is made to panic")

    def panics(**_):
        raise PanicException("called `Option::unwrap()`\non a `None` value")

    monkeypatch.setattr(tokenizers.models, "BPE", panics)
    with pytest.raises(ValueError, match=r"t\.gguf: cannot be read \(called `Option::unwrap\(\)`\); a vocabulary"):
        tokenizer(["th"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_panic_comes_through(error, tokenizer, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers", reason="the library is made to panic")

    def fails(**_):
        raise error

    monkeypatch.setattr(tokenizers.models, "BPE", fails)
    with pytest.raises(error):
        tokenizer(["th"])


JSONS = {
    "empty": b"{}",
    "a-list": b"[]",
    "no-json": b"\x80",
    "cut": b'{"model": {',
    "deep": b"[" * 100_000,
    "a-token-twice": b'{"model": {"type": "WordPiece", "vocab": {"a": 0, "a": 1}}}',
    "a-number-twice": b'{"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 0}}}',
    "an-added-token-with-another-number": b'{"model": {"vocab": {"a": 0}},'
    b' "added_tokens": [{"content": "a", "id": 1}]}',
    "an-added-token-without-a-number": b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "a"}]}',
    "a-merge-without-its-token": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1},'
    b' "merges": ["a b"]}}',
}


@pytest.mark.parametrize("content", JSONS.values(), ids=JSONS)
def test_a_tokenizer_that_the_library_cannot_have_is_one_line(content, tmp_path):
    pytest.importorskip("tokenizers", reason="the library refuses the file")
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: cannot be read \(.+\); a tokenizer's JSON was wanted"
    ) as one:
        encoder_tokenizer(tmp_path)
    assert "\n" not in str(one.value)
