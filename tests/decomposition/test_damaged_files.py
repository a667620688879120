"""Damaged files: each is read right or refused in one line that names the file, whatever compressed it."""

import bz2
import io
import json
import lzma
import zipfile
import zlib

import numpy as np
import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

from refattn import cli
from refattn._npz import arrays_in
from refattn.decomposition.arrays import read_npy, read_npz

METHODS = {
    "stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED, "bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA,
}  # fmt: skip
COMPRESSED = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
PLACES = 200


def arrays():
    q, k, v = np.random.default_rng(0).standard_normal((3, 12, 4)).round(1)
    return {"q": q, "k": k, "v": v}


def archive(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        for name, array in arrays().items():
            content = io.BytesIO()
            np.save(content, array)
            out.writestr(f"{name}.npy", content.getvalue())
    return stream.getvalue()


def damaged(content):
    """Every copy with one byte other, at so many places, and with its end lost."""
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), PLACES):
        other = (content[place] + rng.integers(1, 256)) % 256
        yield f"byte {place}", content[:place] + bytes([other]) + content[place + 1 :]
    for length in (*range(0, 40), *rng.integers(0, len(content), 40)):
        yield f"cut at {length}", content[:length]


def outcome(read, told):
    """What was read, or None where it was refused in one clear line that begins as it should."""
    try:
        return read()
    except ValueError as error:
        refusal = str(error)
    assert refusal.startswith(told)
    assert "\n" not in refusal
    return None


def require_right_or_refused(read, right, told):
    """Hold what was read to what was written; return whether it was read."""
    found = outcome(read, told)
    if found is None:
        return False
    assert found.keys() == right.keys()
    for name, array in right.items():
        np.testing.assert_array_equal(found[name], array)
    return True


@COMPRESSED
def test_a_whole_archive_is_read(method, tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(archive(method))
    assert require_right_or_refused(lambda: read_npz(path, ("q", "k", "v", "h")), arrays(), "")


@COMPRESSED
def test_a_damaged_archive_of_someone_elses_is_read_right_or_refused(method, tmp_path):
    path, content, read = tmp_path / "own.npz", archive(method), 0
    for _, other in damaged(content):
        path.write_bytes(other)
        read += require_right_or_refused(lambda: read_npz(path, ("q", "k", "v", "h")), arrays(), str(path))
    assert read < PLACES / 2, "most bytes matter"


@COMPRESSED
def test_a_damaged_archive_of_our_own_is_read_right_or_refused(method):
    for _, other in damaged(archive(method)):
        require_right_or_refused(
            lambda other=other: arrays_in(other, "qkv", "own", most_bytes=1 << 20), arrays(), "own"
        )


def test_a_damaged_array_is_refused_or_of_the_same_length(tmp_path):
    """It carries no checksum: other numbers are numbers."""
    path, stream = tmp_path / "own.npy", io.BytesIO()
    np.save(stream, np.tri(9))
    for _, other in damaged(stream.getvalue()):
        path.write_bytes(other)
        found = outcome(lambda: read_npy(path), str(path))
        assert found is None or found.nbytes == np.tri(9).nbytes


ERRORS = [zlib.error("x"), lzma.LZMAError("x"), OSError("Invalid data stream"), EOFError(), NotImplementedError("x"),
          RuntimeError("x"), MemoryError(), OverflowError("x"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
          KeyError("x")]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_decompressor_says_is_one_line(error, monkeypatch, tmp_path):
    def fails(self, *_):
        raise error

    path = tmp_path / "own.npz"
    path.write_bytes(archive(zipfile.ZIP_STORED))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", fails)
    with pytest.raises(ValueError, match=r"own\.npz: q: cannot be read \(.+\); a NumPy array was wanted$"):
        read_npz(path, ("q",))


@COMPRESSED
def test_the_command_refuses_a_damaged_file_in_one_line_with_status_2(method, tmp_path):
    content = archive(method)
    start = content.index(b"q.npy") + 20
    path = tmp_path / "own.npz"
    path.write_bytes(content[:start] + bytes(b ^ 0xFF for b in content[start : start + 30]) + content[start + 30 :])
    result = CliRunner().invoke(cli.app, ["decompose", str(path)])
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"refattn: {path}: ")
    assert result.stderr.count("\n") == 1


def test_an_encrypted_or_unknown_member_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    for flag, kind in ((1, 0), (0, 97)):
        content = bytearray(archive(zipfile.ZIP_STORED))
        for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = content.index(header) + offset
            content[at] |= flag
            content[at + 2] = kind
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"own\.npz: cannot be read \(.+\); an archive of NumPy arrays was wanted$"
        ):
            read_npz(path, ("q",))


def test_bad_bytes_of_each_kind_do_what_the_tests_assume():
    """The damage above reaches the decompressors: each refuses in its own way."""
    with pytest.raises(OSError, match="Invalid data stream"):
        bz2.decompress(b"BZh9" + bytes(40))
    with pytest.raises(lzma.LZMAError):
        lzma.decompress(b"\xfd7zXZ\x00" + bytes(40))
    assert issubclass(json.JSONDecodeError, ValueError)
