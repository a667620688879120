"""Transforms: both backends, bounded plan cache, wisdom, one transform for one thread at a time."""

import json
import threading

import numpy as np
import pytest

from refattn import _fft

needs_fftw = pytest.mark.needs("pyfftw")
BACKENDS = [pytest.param("pyfftw", marks=needs_fftw), "scipy"]


@pytest.fixture(params=BACKENDS)
def engine(request, monkeypatch):
    monkeypatch.setenv("REFATTN_FFT", request.param)
    monkeypatch.setattr(_fft, "_shelf", _fft._Shelf())
    assert _fft.backend() == request.param
    return request.param


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 100, 1021])
def test_transforms_are_those_of_numpy(engine, dtype, length):
    rng = np.random.default_rng(length)
    x = rng.standard_normal((3, 2, max(length - 3, 1))).astype(dtype)
    spectrum = _fft.rfft(x, length)
    expected = np.fft.rfft(x.astype(np.float64), length)
    size = 20 * np.finfo(dtype).eps * np.abs(expected).max()
    assert spectrum.dtype == np.result_type(dtype, np.complex64)
    np.testing.assert_allclose(spectrum, expected, rtol=0, atol=size)
    np.testing.assert_allclose(_fft.irfft(spectrum, length)[..., : x.shape[-1]], x[..., :length], rtol=0, atol=size)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_complex_transforms_are_not_scaled(engine, dtype):
    rng = np.random.default_rng(0)
    with _fft.borrowed("fft", 4, 12, dtype) as forward, _fft.borrowed("ifft", 4, 12, dtype) as inverse:
        forward.input[...] = rng.standard_normal((4, 12)) + 1j * rng.standard_normal((4, 12))
        kept = forward.input.copy()
        forward.execute()
        np.testing.assert_array_equal(forward.input, kept)
        inverse.input[...] = forward.output
        inverse.execute()
        np.testing.assert_allclose(inverse.output, 12 * kept, rtol=0, atol=200 * np.finfo(dtype).eps)


def test_a_lent_transform_is_nobody_elses(engine):
    with _fft.borrowed("fft", 2, 8, np.float64) as one, _fft.borrowed("fft", 2, 8, np.float64) as two:
        assert one is not two
    with _fft.borrowed("fft", 2, 8, np.float64) as again:
        assert again in (one, two)


@pytest.mark.parametrize(
    ("most", "most_bytes", "left"), [(10, 1 << 20, 10), (100, 10_000, 3)], ids=["by number", "by size"]
)
def test_idle_transforms_are_bounded(most, most_bytes, left, engine, monkeypatch):
    monkeypatch.setattr(_fft, "KEPT_TRANSFORMS", most)
    monkeypatch.setattr(_fft, "KEPT_BYTES", most_bytes)
    for length in range(1, 200):
        _fft.rfft(np.ones((1, length)), length)
        idle = [transform for waiting in _fft._shelf.idle.values() for transform in waiting]
        assert len(idle) == _fft._shelf.count <= most
        assert sum(transform.nbytes for transform in idle) == _fft._shelf.nbytes <= most_bytes
    assert ("rfft", 1, 199, np.dtype(np.float64), engine, "estimate") in _fft._shelf.idle
    assert len(idle) == left
    _fft.rfft(np.ones((1, most_bytes)), most_bytes)  # more than may be kept: used, and dropped
    assert _fft._shelf.nbytes <= most_bytes
    assert _fft._shelf.count == 0  # all that were there made room for it


def test_threads_with_mixed_shapes(engine):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((3, n)) for n in (5, 64, 100, 257)]
    wrong = []

    def work():
        for _ in range(100):
            for x in inputs:
                back = _fft.irfft(_fft.rfft(x, x.shape[1]), x.shape[1])
                if np.abs(back - x).max() > 1e-12:
                    wrong.append(x.shape)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_fftw
def test_measured_plans_and_wisdom(tmp_path, monkeypatch):
    monkeypatch.setenv("REFATTN_FFT", "pyfftw")
    monkeypatch.setattr(_fft, "_shelf", _fft._Shelf())
    try:
        _fft.set_planner_effort("measure")
        x = np.random.default_rng(0).standard_normal((2, 96))
        np.testing.assert_allclose(_fft.rfft(x, 96), np.fft.rfft(x), rtol=0, atol=1e-12)
        _fft.export_wisdom(tmp_path / "wisdom.json")
        _fft.import_wisdom(tmp_path / "wisdom.json")
        saved = json.loads((tmp_path / "wisdom.json").read_text())
        saved["fftw"][0] = saved["fftw"][0].replace("#x", "#7", 1)  # on such FFTW ends the process
        (tmp_path / "wisdom.json").write_text(json.dumps(saved))
        with pytest.raises(ValueError, match="damaged"):
            _fft.import_wisdom(tmp_path / "wisdom.json")
    finally:
        _fft.set_planner_effort("estimate")
    assert [path.name for path in tmp_path.iterdir()] == ["wisdom.json"]
    with pytest.raises(ValueError, match="'estimate', 'measure', 'patient'"):
        _fft.set_planner_effort("hard")


@pytest.mark.slow
@needs_fftw
def test_estimated_plans_are_the_same_after_measuring(tmp_path, monkeypatch):
    """FFTW follows wisdom also where it estimates: for most of these lengths it would find another plan."""
    monkeypatch.setenv("REFATTN_FFT", "pyfftw")
    x = np.random.default_rng(0).standard_normal((16, 4096))

    def transformed(effort):
        monkeypatch.setattr(_fft, "_shelf", _fft._Shelf())
        _fft.set_planner_effort(effort)
        try:
            return [_fft.rfft(x[:, :length], length) for length in (256, 512, 700, 1024, 1500, 2048, 3000, 4096)]
        finally:
            _fft.set_planner_effort("estimate")

    expected = transformed("estimate")
    transformed("measure")
    _fft.export_wisdom(tmp_path / "wisdom.json")
    assert len((tmp_path / "wisdom.json").read_text()) > 300
    for _ in range(2):
        for found, right in zip(transformed("estimate"), expected, strict=True):
            np.testing.assert_array_equal(found, right)
        _fft.import_wisdom(tmp_path / "wisdom.json")


@needs_fftw
@pytest.mark.parametrize("content", ["", "{}", '{"fftw": 3}', '{"fftw": ["a"]}', '{"fftw": ["a", "b", "c"]}'])
def test_what_is_not_wisdom_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.setenv("REFATTN_FFT", "pyfftw")
    path = tmp_path / "wisdom.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="wisdom"):
        _fft.import_wisdom(path)


@needs_fftw
def test_wisdom_wants_fftw_and_a_place_to_go(tmp_path, monkeypatch):
    monkeypatch.setenv("REFATTN_FFT", "scipy")
    with pytest.raises(RuntimeError, match="FFTW is not in use"):
        _fft.export_wisdom(tmp_path / "wisdom.json")
    monkeypatch.setenv("REFATTN_FFT", "pyfftw")
    with pytest.raises(OSError, match="nowhere"):
        _fft.export_wisdom(tmp_path / "nowhere" / "wisdom.json")
    monkeypatch.setenv("REFATTN_FFT", "mkl")
    with pytest.raises(ValueError, match="REFATTN_FFT"):
        _fft.backend()
