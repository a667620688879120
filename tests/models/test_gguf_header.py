"""What a GGUF header claims is compared with the file before the library believes it."""

import struct
import time

import numpy as np
import pytest

from refattn.models import read_gguf

gguf = pytest.importorskip("gguf", reason="the gguf library writes the files these tests read")


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("kinds", [1, 2, 3])
    writer.add_array("tokens", list("abcdefg"))
    writer.add_tensor("w", np.ones((2, 3), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def altered(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


def test_a_whole_file_is_read(whole):
    file = read_gguf(whole)
    assert file.metadata["tokens"] == list("abcdefg")
    np.testing.assert_array_equal(file.tensor("w"), np.ones((2, 3)))


@pytest.mark.parametrize("claim", [10, 1 << 30, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize(("kind", "length"), [(5, 3), (8, 7)], ids=["numbers", "strings"])
def test_a_list_that_claims_more_than_there_is_is_refused_at_once(whole, kind, length, claim):
    altered(whole, struct.pack("<IQ", kind, length), struct.pack("<IQ", kind, claim))
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"whole\.gguf: the file cannot be read \("):
        read_gguf(whole)
    assert time.process_time() - begun < 5


def test_a_list_of_lists_is_refused(whole):
    altered(whole, struct.pack("<IQ", 5, 3), struct.pack("<IQ", 9, 3))
    with pytest.raises(ValueError, match="values of the type 9 are claimed"):
        read_gguf(whole)


def test_counts_that_are_absurd_are_refused(whole):
    content = bytearray(whole.read_bytes())
    content[8:24] = struct.pack("<QQ", 1 << 62, 1 << 62)
    whole.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_gguf(whole)


def test_an_empty_file_is_refused(whole):
    whole.write_bytes(b"")
    with pytest.raises(ValueError, match="it is empty"):
        read_gguf(whole)
