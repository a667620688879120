"""Reference vectors: the same bytes when computed anew, the right numbers, readable without NumPy."""

import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refattn.testing.vectors import load_manifest, load_vectors
from refattn.testing.vectors.files import MANIFEST_FILE, archive_bytes, npy_bytes, vectors_folder
from refattn.testing.vectors.verify import difference, verify_vectors

FOLDER = Path(str(vectors_folder()))


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped folder."""
    shutil.copytree(FOLDER, tmp_path / "vectors")
    return tmp_path / "vectors"


def test_every_stored_result_is_what_the_package_computes():
    checks = verify_vectors()
    assert len(checks) > 50
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]


@pytest.mark.slow
def test_computing_them_anew_gives_the_shipped_bytes(tmp_path):
    pytest.importorskip("mpmath", reason="needs the extra 'test'")
    from refattn.laboratory.vectors import generate

    generate(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in FOLDER.iterdir())
    for file in FOLDER.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_reader_in_javascript_with_nothing_of_ours_finds_the_same_numbers():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = Path(__file__).with_name("read_vectors.js")
    run = subprocess.run([node, script, FOLDER], capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    listed = [case for file in load_manifest()["files"].values() for case in file["cases"]]
    assert found["arrays"] == sum(len(case["arrays"]) for case in listed)
    assert found["cases"] > 35
    assert max(found["worst"].values()) < 1e-12, found["worst"]


def test_they_are_small_hold_every_operation_and_hard_cases():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000
    cases = load_vectors()
    operations = {"dense", "conv", "conv-basis", "conv-recover", "sparsek", "sparsek-operator", "sparsek-thresholds"}
    assert {case.operation for case in cases} == operations
    wide = next(case for case in cases if (case.operation, case.name) == ("dense", "wide"))
    assert np.abs(wide.arrays["q"] @ wide.arrays["k"].swapaxes(-1, -2) / 2).max() > 9000
    for case in cases:
        for name in case.inputs:
            array = case.arrays[name]
            assert np.array_equal(array.astype(np.float32), array), (case.name, name)


def test_one_flipped_bit_in_a_result_is_seen(copy):
    content = bytearray((copy / "dense.npz").read_bytes())
    content[-2000] ^= 1
    (copy / "dense.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"dense.npz: SHA-256"):
        verify_vectors(copy)


def test_a_wrong_number_under_a_right_hash_fails_its_case(copy):
    with np.load(copy / "sparsek_operator.npz") as stored:
        arrays = dict(stored)
    arrays["generic.p"] = arrays["generic.p"] + 1e-9
    content = archive_bytes(arrays)
    (copy / "sparsek_operator.npz").write_bytes(content)
    manifest = json.loads((copy / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["files"]["sparsek_operator.npz"]["sha256"] = hashlib.sha256(content).hexdigest()
    (copy / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    assert [check.name for check in verify_vectors(copy) if not check.passed] == ["sparsek-operator: generic"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/1", "files": {}}'], ids=repr)
def test_a_manifest_that_is_none_is_refused(copy, text):
    (copy / MANIFEST_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=MANIFEST_FILE):
        load_vectors(copy)


def test_a_missing_file_is_named(copy):
    (copy / "conv.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"conv\.npz"):
        load_vectors(copy)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8], ids=lambda x: x.__name__)
def test_arrays_survive_the_format(shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    back = np.load(io.BytesIO(npy_bytes(array)), allow_pickle=False)
    assert back.shape == shape
    assert back.dtype == dtype
    assert np.array_equal(back, array)


def test_objects_are_not_stored():
    with pytest.raises(TypeError, match="dtype object"):
        npy_bytes(np.array([None]))


def test_a_difference_sees_shapes_and_infinities():
    assert difference(np.zeros(2), np.zeros(3)) == np.inf
    assert difference(np.array([1.0, np.inf]), np.array([1.0, 2.0])) == np.inf
    assert difference(np.array([np.nan]), np.array([1.0])) == np.inf
