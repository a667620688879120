"""Sizes are judged before anything of that size is made: no reader takes 64 MB more than what it returns."""

import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from refattn import SparseKCache
from refattn._json import MOST_BYTES, parsed
from refattn._npz import arrays_in, read_arrays
from refattn.decomposition import read_heads
from refattn.experiments.records import read_records
from refattn.models import EncoderConfig, read_gguf, read_safetensors, read_scorer
from refattn.testing import load_vectors
from refattn.testing.real_heads import load_real_heads

MOST = 64 << 20
KINDS = {"deflated": zipfile.ZIP_DEFLATED, "bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


def peak_of(read, *, refused=ValueError, message="."):
    """Return the most memory it took at once, in bytes."""
    tracemalloc.start()
    try:
        if refused is None:
            read()
        else:
            with pytest.raises(refused, match=message):
                read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def header_of(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zeros_archive(path, members, kind=zipfile.ZIP_DEFLATED):
    """An archive of arrays of zeros, streamed: whatever they inflate to, making them takes nothing."""
    with zipfile.ZipFile(path, "w", kind, compresslevel=1 if kind == zipfile.ZIP_DEFLATED else None) as archive:
        for name, shape in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header_of(shape))
                left, piece = int(np.prod(shape)) * 8, bytes(1 << 22)
                while left:
                    left -= member.write(piece[: min(left, len(piece))])
    return path


def lying(path, name, size):
    """Let the directory, and the member's own header, say another size of the member."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    while content[at + 46 : at + 46 + len(name)] != name.encode():
        at = content.index(b"PK\x01\x02", at + 1)
    struct.pack_into("<I", content, at + 24, size)
    path.write_bytes(content)
    return path


N = 5000  # 200 MB of zeros


@pytest.mark.parametrize("members", [{"h": (N, N)}, {"q": (N, 4000), "k": (N, 4000)}, {"h": (2, 3, N, N)}], ids=str)
def test_an_archive_with_too_many_positions_is_refused_by_its_header(members, tmp_path):
    members = {name: (*shape[:-2], N, shape[-1]) for name, shape in members.items()}
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # the sizes fit, the content would not come
        for name, shape in members.items():
            archive.writestr(f"{name}.npy", header_of(shape))
    for name, shape in members.items():
        lying(path, f"{name}.npy", min(len(header_of(shape)) + int(np.prod(shape)) * 8, (1 << 32) - 1))
    assert peak_of(lambda: list(read_heads(path)[1]), message="n = 5000 came|truncated or altered") < MOST // 16


@pytest.mark.slow
def test_only_the_first_positions_are_kept_where_only_they_are_asked_for(tmp_path):
    path = zeros_archive(tmp_path / "x.npz", {"h": (N, N)})
    found = []
    assert peak_of(lambda: found.extend(read_heads(path, length=10)[1]), refused=None) < MOST // 8
    assert found[0].logits.shape == (10, 10)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("archive", [np.savez, np.savez_compressed, None], ids=["stored", "deflated", "npy"])
def test_the_first_positions_are_those_of_the_whole(archive, order, tmp_path):
    h = np.asarray(np.random.default_rng(0).standard_normal((2, 3, 7, 7)), order=order)
    path = tmp_path / ("x.npz" if archive else "x.npy")
    archive(path, h=h) if archive else np.save(path, h)
    for length in (1, 4, 7):
        count, heads = read_heads(path, length=length)
        assert count == 6
        for head, right in zip(heads, h.reshape(6, 7, 7), strict=True):
            np.testing.assert_array_equal(head.logits, np.tril(right[:length, :length]))
    if archive:
        q, k, v = np.random.default_rng(1).standard_normal((3, 4, 9, 5))
        archive(path, q=np.asarray(q, order=order), k=k, v=v)
        for head, right in zip(read_heads(path, length=3)[1], v, strict=True):
            np.testing.assert_array_equal(head.v, right[:3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_stream_that_inflates_to_more_than_the_directory_says_is_cut(kind, tmp_path):
    path = zeros_archive(tmp_path / "x.npz", {"h": (3300, 3300)}, kind)
    lying(path, "h.npy", 128 + 32)
    assert path.stat().st_size < 1 << 20
    assert peak_of(lambda: read_heads(path), message="truncated or altered|cannot be read") < MOST
    with zipfile.ZipFile(path, "w", kind) as archive:  # and one whose own header agrees with the lie
        archive.writestr("h.npy", header_of((2, 2)) + bytes(80 << 20))
    lying(path, "h.npy", len(header_of((2, 2))) + 32)
    assert peak_of(lambda: read_heads(path), message="checksum|Bad CRC") < MOST


@pytest.mark.parametrize("size", [1 << 31, (1 << 32) - 1])
def test_a_window_that_nothing_needs_is_not_made(size, tmp_path):
    path = zeros_archive(tmp_path / "x.npz", {"h": (4, 4)}, zipfile.ZIP_LZMA)
    content = bytearray(path.read_bytes())
    at = 30 + sum(struct.unpack_from("<2H", content, 26))
    struct.pack_into("<I", content, at + 5, size)
    path.write_bytes(content)
    assert peak_of(lambda: read_heads(path), message=f"a window of {size} bytes") < MOST


@pytest.mark.parametrize("archive", [True, False], ids=["npz", "npy"])
def test_a_header_of_gigabytes_is_not_read(archive, tmp_path):
    claim = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + b"{" + b" " * (100 << 20)
    path = tmp_path / ("x.npz" if archive else "x.npy")
    if archive:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            file.writestr("h.npy", claim)
    else:
        path.write_bytes(claim)
    del claim
    assert peak_of(lambda: read_heads(path), message="its header claims 1073741824 bytes") < MOST // 16


def test_a_directory_of_a_million_members_is_not_read(tmp_path):
    record = b"PK\x01\x02" + bytes(42)
    path = tmp_path / "x.npz"
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(record) << 18, 0, 0)
    path.write_bytes(record * (1 << 18) + end)
    for read in (lambda: read_heads(path), lambda: read_arrays(path, ("x",))):
        assert peak_of(read, message="a directory of more than 1048576 bytes") < MOST // 8


def test_a_member_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("h.npy", header_of((2, 2)) + bytes(32))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("h.npy", header_of((2, 2)) + bytes(32))
    with pytest.raises(ValueError, match=r"it holds h\.npy twice"):
        read_heads(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"it holds"):
        read_arrays(tmp_path / "x.npz", ("h",))


BIG = 12_000_000  # 96 MB of float64: one copy too many is over the limit


@pytest.mark.slow
def test_reading_our_own_arrays_holds_them_once(tmp_path):
    path = tmp_path / "x.npz"
    zeros_archive(path, {"x": (BIG,)}, zipfile.ZIP_STORED)
    found = {}
    taken = peak_of(lambda: found.update(read_arrays(path, ("x",))), refused=None)
    assert taken - found["x"].nbytes < MOST // 16
    zeros_archive(path, {"x": (BIG,)})
    content = path.read_bytes()
    taken = peak_of(lambda: found.update(arrays_in(content, ("x",), "x", most_bytes=1 << 30)), refused=None)
    assert taken - found["x"].nbytes < MOST // 16
    assert peak_of(lambda: arrays_in(content, ("x",), "x", most_bytes=1 << 20), message="longer than any") < MOST // 16
    assert peak_of(lambda: SparseKCache.load(path)) < MOST // 16
    assert peak_of(lambda: read_scorer(path)) < MOST // 16


def test_hashes_are_taken_without_holding_the_file(tmp_path):
    (tmp_path / "a.npz").write_bytes(bytes(100 << 20))
    described = {"files": {"a.npz": {"sha256": "0", "cases": []}}, "schema": "refattn-vectors/1"}
    (tmp_path / "manifest.json").write_text(json.dumps(described))
    assert peak_of(lambda: load_vectors(tmp_path), message="truncated or altered") < MOST // 16
    (tmp_path / "a.npz").rename(tmp_path / "smollm2_shakespeare.npz")
    (tmp_path / "smollm2_shakespeare.json").write_text('{"sha256": "0", "arrays_sha256": "0"}')
    assert peak_of(lambda: load_real_heads(folder=tmp_path), message="truncated or altered") < MOST // 16


TEXTS = {"lists": b"[]", "objects": b"{}", "numbers": b"1", "texts": b'""'}


@pytest.mark.slow
@pytest.mark.parametrize("item", TEXTS.values(), ids=TEXTS)
def test_json_is_parsed_up_to_a_length_only(item, tmp_path):
    repeated = b"[" + b",".join([item] * (MOST_BYTES // (len(item) + 1) - 1)) + b"]"
    assert peak_of(lambda: parsed(repeated), refused=None) < MOST
    many = b'{"files": ' + repeated + b"," + b" " * MOST_BYTES + b"}"
    for name in ("config.json", "manifest.json", "smollm2_shakespeare.json"):
        (tmp_path / name).write_bytes(many)
    for read in (
        lambda: EncoderConfig.from_json(tmp_path / "config.json"),
        lambda: load_vectors(tmp_path),
        lambda: load_real_heads(folder=tmp_path),
    ):
        assert peak_of(read, message="JSON of more than") < MOST // 8
    (tmp_path / "records.jsonl").write_bytes(many + b"\n")
    assert peak_of(lambda: read_records(tmp_path / "records.jsonl"), message="line 1: longer than") < MOST // 8


# Weights


def test_a_safetensors_header_is_parsed_up_to_a_length_only(tmp_path):
    path = tmp_path / "w.safetensors"
    header = b'{"a": [' + b"[]," * (4 << 20) + b"[]]}"
    for claim in (len(header), 1 << 62, len(header) + 1):
        path.write_bytes(struct.pack("<Q", claim) + header)
        assert peak_of(lambda: read_safetensors(path), message="JSON of more than|a header of") < MOST // 8


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_safetensors_are_held_once(dtype, tmp_path):
    path, size = tmp_path / "w.safetensors", {"F32": 4, "BF16": 2}[dtype]
    entry = {"dtype": dtype, "shape": [2 * BIG], "data_offsets": [0, 2 * BIG * size]}
    header = json.dumps({"w": entry}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2 * BIG * size)
    found = {}
    assert peak_of(lambda: found.update(read_safetensors(path)), refused=None) - found["w"].nbytes < MOST // 2


def gguf_of(tmp_path, pairs=b"", counts=(0, 1), tensors=b"", data=0):
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + pairs + tensors
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(head)
        if data:
            file.truncate(len(head) + -len(head) % 32 + data)
    return path


@pytest.mark.slow
@pytest.mark.needs("gguf")
@pytest.mark.parametrize(("kind", "size"), [(0, 1), (4, 4), (12, 8), (8, 8)], ids=["u8", "u32", "f64", "texts"])
def test_a_long_list_takes_nothing_until_it_is_looked_up(kind, size, tmp_path):
    length = ((24 if kind != 8 else 1) << 20) // size
    pair = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, length) + bytes(length * size)
    path = gguf_of(tmp_path, pair)
    found = []
    assert peak_of(lambda: found.append(read_gguf(path)), refused=None) < MOST // 16
    assert found[0].length("k") == length


@pytest.mark.needs("gguf")
def test_counts_of_pairs_and_tensors_are_judged_before_they_are_walked(tmp_path):
    pair = struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 0, 1)
    for counts in ((0, 1 << 20), (1 << 20, 0)):
        path = gguf_of(tmp_path, pair * (1 << 20), counts)
        assert peak_of(lambda path=path: read_gguf(path), message="are claimed, at most 32768") < MOST // 16


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("shape", [(1 << 62, 4), (1 << 33, 1 << 31, 4), (1 << 40,), ((1 << 64) - 1, 2, 2, 2)], ids=str)
def test_a_tensor_larger_than_the_file_is_refused_however_its_size_wraps(shape, tmp_path):
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
    path = gguf_of(tmp_path, counts=(1, 0), tensors=tensor + struct.pack("<IQ", 0, 0), data=64)
    assert peak_of(lambda: read_gguf(path), message="tensor 'w' ends at byte") < MOST // 16


@pytest.mark.needs("gguf")
@pytest.mark.parametrize(("kind", "block"), [(0, (1, 4)), (8, (32, 34)), (30, (1, 2))], ids=["F32", "Q8_0", "BF16"])
def test_a_tensor_is_dequantised_in_pieces(kind, block, tmp_path):
    entries = 2 * BIG
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, entries, kind, 0)
    path = gguf_of(tmp_path, counts=(1, 0), tensors=tensor, data=entries // block[0] * block[1])
    found = []
    assert peak_of(lambda: found.append(read_gguf(path).tensor("w")), refused=None) - found[0].nbytes < MOST // 2


def test_a_checksum_is_that_of_the_whole_member(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, h=np.tri(4))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 16] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_heads(path)
