"""What a user names is used, or is an error with status 2 before anything runs: options, files, variables."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

from refattn import cli, dense_attention
from refattn._fft import backend
from refattn.decomposition import read_heads
from refattn.testing import check_attention
from refattn.tuning import thread_count

Q, K, V = np.random.default_rng(0).standard_normal((3, 2, 16, 4))
H = np.tril(Q[0] @ K[0].T)
FILES = {
    "two.npz": {"q": Q, "k": K},
    "one.npz": {"q": Q[0], "k": K[0], "v": V[0]},
    "both.npz": {"q": Q[0], "k": K[0], "v": V[0], "h": H},
    "h and v.npz": {"h": H, "v": V[0]},
    "h.npz": {"h": H},
    "extra.npz": {"q": Q[0], "k": K[0], "mask": H, "slope": V[0]},
}


def kernel(q, k, v, *, causal, scale):
    return dense_attention(q, k, v, mask="causal" if causal else "full", scale=scale)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command line in a folder that holds `FILES`; the output has no frames and no line ends."""
    monkeypatch.chdir(tmp_path)
    for name, arrays in FILES.items():
        np.savez(name, **arrays)

    def run(*arguments, **environment):
        known = {"COLUMNS": "300", **environment}
        result = CliRunner().invoke(cli.app, list(arguments), env=known)
        return result.exit_code, " ".join(result.output.replace("│", " ").split())

    return run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("decompose", "two.npz", "--head", "0", "--head", "7"), "head: 7 came"),
        (("decompose", "two.npz", "--head", "7", "--head", "0"), "head: 7 came"),
        (("decompose", "two.npz", "--head", "0,0"), "head: 0,0 came"),
        (("decompose", "two.npz", "--head", "first"), "head: first came"),
        (("decompose", "one.npz", "--head", "0"), "head: 0 came"),
        (("decompose", "both.npz"), "arrays q, k, v, h came"),
        (("decompose", "h and v.npz"), "arrays v, h came"),
        (("decompose", "h.npz", "--scale", "2"), "scale: 2.0 came with logits"),
        (("decompose", "one.npz", "--matrix", "logits"), "matrix: 'logits' came with q and k"),
        (("decompose", "one.npz", "--seed", "1", "--seed", "2"), "--seed"),
        (("decompose", "one.npz", "--length", "8", "--terms", "2", "--length", "4"), "--length"),
        (("decompose", "one.npz", "--stored", "float128"), "stored: 'float128' came"),
        (("conform", "refattn:dense_attention", "--op", "dense", "--only", "n = 16", "--only", "bogus"), "'bogus'"),
        (
            ("conform", "refattn:dense_attention", "--op", "dense", "--skip", "bogus"),
            "skip: no case of the profile",
        ),
        (("conform", "refattn:dense_attention", "--op", "dense", "--op", "conv"), "--op"),
        (("report", "--json", "a.json", "--json", "b.json"), "--json"),
        (("report", "--schema", "--only", "recover"), "--schema"),
        (("report", "--schema", "--json", "r.json"), "--schema"),
        (("experiment", "conv-by-fft", "--list"), "--list"),
        (("experiment", "--list", "--sizes", "5"), "--list"),
        (("vectors", "verify", "--dir", "a", "--dir", "b"), "--dir"),
        (("report", "recover"), "recover"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_would_be_dropped_is_refused_by_name(run, arguments, told, tmp_path):
    status, output = run(*arguments)
    assert status == 2, output
    assert told in output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REFATTN_NUM_THREADS", "two"),
        ("REFATTN_NUM_THREADS", "0"),
        ("REFATTN_NUM_THREADS", "-1"),
        ("REFATTN_NUM_THREADS", "1.5"),
        ("REFATTN_NUM_THREADS", "²"),
        ("REFATTN_FFT", "bogus"),
        ("REFATTN_FFT", "SciPy"),
        ("OMP_NUM_THREADS", "many"),
        ("REFATTN_THREADS", "2"),
        ("REFATTN_NUM_THREAD", "2"),
    ],
    ids=str,
)
def test_a_variable_that_is_not_what_it_can_be_is_refused_before_anything_runs(run, variable, value):
    status, output = run("decompose", "one.npz", **{variable: value})
    assert status == 2
    assert output.startswith(f"refattn: {variable}: ")
    assert "Traceback" not in output


def test_a_folder_of_compiled_loops_that_cannot_be_one_is_refused_before_anything_runs(run):
    status, output = run("report", REFATTN_CACHE_DIR=os.path.abspath("one.npz"))
    assert status == 2
    assert output.startswith("refattn: REFATTN_CACHE_DIR=")


def test_help_needs_no_right_environment(run):
    assert run("--help", REFATTN_FFT="bogus")[0] == 0
    assert run("decompose", "--help", REFATTN_NUM_THREADS="two")[0] == 0


def test_python_refuses_the_same_variables(monkeypatch):
    assert backend() in ("pyfftw", "scipy")  # pyFFTW reads OMP_NUM_THREADS when it is loaded, and knows one form
    monkeypatch.setenv("REFATTN_NUM_THREADS", "two")
    with pytest.raises(ValueError, match=r"^REFATTN_NUM_THREADS: 'two' came, a whole number"):
        thread_count()
    monkeypatch.setenv("REFATTN_NUM_THREADS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")  # OpenMP's own form: one number for each level
    assert thread_count() == 3
    monkeypatch.setenv("REFATTN_FFT", "")
    assert backend() in ("pyfftw", "scipy")


def test_every_head_that_is_named_is_done_whatever_the_order(run):
    assert run("decompose", "two.npz", "--head", "1", "--head", "0", "--json", "out.json")[0] == 0
    with open("out.json", encoding="utf-8") as file:
        assert [head["head"] for head in json.load(file)["heads"]] == [[0], [1]]
    count, heads = read_heads_of("two.npz", only=["1"])
    (head,) = heads
    assert count == 1
    np.testing.assert_allclose(head.logits, np.tril(Q[1] @ K[1].T) / 2, rtol=0, atol=1e-14)


def read_heads_of(name, **options):
    from pathlib import Path

    return read_heads(Path(name), **options)


def test_arrays_of_other_names_are_named(run):
    status, output = run("decompose", "extra.npz")
    assert status == 0
    assert "refattn: extra.npz: not read: mask, slope" in output


@pytest.mark.parametrize("only", ["n = 16", ["n = 16"]], ids=["text", "list"])
def test_one_text_is_one_text_and_not_its_letters(only):
    report = check_attention(kernel, "dense", only=only)
    assert all("n = 16" in case.case for case in report.cases)
    assert 0 < len(report.cases) < 5


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"only": ["n = 16", "bogus"]}, ValueError, "^only: no case of the profile 'standard' has 'bogus'"),
        ({"only": "bogus"}, ValueError, "^only: no case of the profile 'standard' has 'bogus'"),
        ({"skip": "bogus"}, ValueError, "^skip: no case of the profile 'standard' has 'bogus'"),
        ({"only": [16]}, TypeError, "^only: 16 came"),
        ({"seeds": []}, ValueError, "^seeds: "),
        ({"seeds": [1, 1]}, ValueError, "^seeds: "),
        ({"seeds": "12"}, TypeError, "^seeds: '1' came"),
    ],
    ids=str,
)
def test_a_case_or_a_seed_that_there_is_not_is_refused(options, error, told):
    with pytest.raises(error, match=told):
        check_attention(kernel, "dense", **options)
