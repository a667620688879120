"""The description of the environment: complete, and plain data."""

import json

import refattn


def test_text_names_the_package_the_fft_and_the_threads(capsys):
    refattn.show_versions()
    text = capsys.readouterr().out
    assert text.startswith(f"refattn {refattn.__version__}\n")
    for fact in ("python ", "packages numpy ", "fft backend ", "numba threads ", "blas 0 ", "machine cpu "):
        assert f"\n{fact}" in text


def test_json_is_one_object_with_the_variables_that_are_set(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    refattn.show_versions(json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["refattn"] == refattn.__version__
    assert facts["variables"]["OMP_NUM_THREADS"] == "2"


def test_the_fallback_has_no_fftw_version(capsys, monkeypatch):
    monkeypatch.setenv("REFATTN_FFT", "scipy")
    refattn.show_versions(json=True)
    assert json.loads(capsys.readouterr().out)["fft"] == {"backend": "scipy", "fftw_version": None}
