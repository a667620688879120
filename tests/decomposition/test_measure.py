"""What is said of a head is what the definitions give, and the command prints, draws and writes it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from refattn import conv_attention, dense_attention
from refattn.cli import app
from refattn.convbasis import best_starts, logit_residual
from refattn.decomposition import measure_head, read_heads
from refattn.decomposition.measure import exact_terms, rounding_of_logits
from refattn.decomposition.picture import picture
from refattn.testing import attention_inputs, rope_structured

runner = CliRunner()


def structured(folder, **options):
    q, k, v, starts = rope_structured(150, 8, starts=[0, 40, 90], seed=0, deviation=2.0, **options)
    np.savez(folder / "heads.npz", q=q, k=k, v=v)
    return folder / "heads.npz", q, k, v, starts


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_exact_structure_is_seen(tmp_path, dtype):
    path, *_, starts = structured(tmp_path, dtype=dtype)
    (head,) = read_heads(path)[1]
    report = measure_head(head, terms=3)
    found = report.document
    assert found["exact_terms"] == 3
    assert found["conv_like"]
    assert found["terms_needed"] == 3
    np.testing.assert_array_equal([one["first_column"] for one in found["segments"]], starts)
    assert all(one["holds"] and one["unexplained"] < 1e-10 for one in found["segments"])
    assert report.recovery.found


SMALLEST_SEEN = {np.float32: 1e-3, np.float64: 1e-11}
"""Smallest difference, relative to a logit's natural size, that is told from rounding at n = 4,096."""


@pytest.mark.parametrize(
    ("n", "d", "size"),
    [
        (600, 32, 1.0),
        (600, 32, 1e-6),
        (600, 32, 1e6),
        (1000, 64, 1.0),
        pytest.param(4096, 64, 1.0, marks=pytest.mark.long),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", SMALLEST_SEEN, ids=["f32", "f64"])
def test_terms_are_counted_beyond_rounding_and_no_further(tmp_path, dtype, n, d, size):
    """Three terms are three at every length; a fourth that differs little from the third is counted."""
    q, k, *_ = rope_structured(n, d, starts=[0, n // 4, n // 2], seed=0, deviation=2.0, dtype=dtype)
    planted = k.copy()
    planted[n - n // 4 :] *= 1 + SMALLEST_SEEN[dtype]
    for keys, terms in ((k, 3), (planted, 4)):
        np.savez(tmp_path / "heads.npz", q=dtype(size) * q, k=keys)
        (head,) = read_heads(tmp_path / "heads.npz")[1]
        assert exact_terms(head.logits, *rounding_of_logits(head)) == terms
        np.save(tmp_path / "h.npy", head.logits.astype(dtype))
        (matrix,) = read_heads(tmp_path / "h.npy")[1]
        assert exact_terms(matrix.logits, *rounding_of_logits(matrix)) == terms


def test_a_small_head_is_measured_by_its_own_size(tmp_path):
    """Keys over 20 decades, as norms of segments are in no array's norm: each column has its own rounding."""
    q, k, _, starts = rope_structured(200, 8, starts=4, seed=1)
    sizes = np.repeat([1.0, 1e-10, 1e10, 1e-5], np.diff([*starts, 200]))[:, None]
    for keys, terms in ((k * sizes, 4), (k * sizes * np.where(np.arange(200) < 190, 1, 1 + 1e-9)[:, None], 5)):
        np.savez(tmp_path / "heads.npz", q=q, k=keys)
        (head,) = read_heads(tmp_path / "heads.npz")[1]
        assert exact_terms(head.logits, *rounding_of_logits(head)) == terms


def test_the_report_counts_the_terms_of_a_long_head(tmp_path):
    q, k, v, _ = rope_structured(600, 32, starts=3, seed=0, deviation=2.0)
    np.savez(tmp_path / "heads.npz", q=q, k=k, v=v)
    (head,) = read_heads(tmp_path / "heads.npz")[1]
    assert measure_head(head, terms=3).document["exact_terms"] == 3


def test_figures_are_those_of_the_definitions(tmp_path):
    q, k, v = attention_inputs(100, 8, seed=1, deviation=2.0)
    np.savez(tmp_path / "heads.npz", q=q, k=k, v=v)
    (head,) = read_heads(tmp_path / "heads.npz")[1]
    report = measure_head(head, terms=5)
    found, exact = report.document, dense_attention(q, k, v)
    assert not found["conv_like"]
    assert found["exact_terms"] == 100
    assert found["bounds"]["residual"] == pytest.approx(logit_residual(q, k, report.basis).max(), rel=1e-12)
    out = conv_attention(q, k, v, basis=report.basis)
    assert found["bounds"]["output"] == pytest.approx(np.linalg.norm(out - exact) / np.linalg.norm(exact), rel=1e-9)
    assert found["bounds"]["largest_output"] == pytest.approx(np.abs(out - exact).max(), rel=1e-9)
    assert found["bounds"]["largest_output"] <= found["bounds"]["sharp"] <= found["bounds"]["posterior"]
    best = best_starts(q, k, 32)
    for point in found["curve"]:
        if point["starts"] == "best, least squares":
            assert point["logits"] == pytest.approx(best.relative_error[point["k"] - 1], rel=1e-9)
        else:
            assert point["logits"] >= best.relative_error[point["k"] - 1] * (1 - 1e-12)
    unexplained = sum(
        one["unexplained"] * np.sum(head.logits[:, one["first_column"] :][:, : one["columns"]] ** 2)
        for one in found["segments"]
    )
    assert unexplained == pytest.approx(best.squared_error[4], rel=1e-9)
    assert sum(one["columns"] for one in found["segments"]) == 100


@pytest.mark.slow
def test_a_picture_is_a_png_and_the_same_every_time(tmp_path):
    (head,) = read_heads(structured(tmp_path)[0])[1]
    report = measure_head(head, terms=3)
    drawn = picture(report, "title")
    assert drawn.startswith(b"\x89PNG")
    assert drawn == picture(report, "title")


@pytest.mark.slow
def test_the_command_prints_draws_and_writes(tmp_path):
    path = structured(tmp_path, lead=(2,))[0]
    result = runner.invoke(
        app,
        ["decompose", str(path), "--terms", "3", "--png", str(tmp_path / "p.png"), "--json", str(tmp_path / "d.json")],
    )
    assert result.exit_code == 0, result.output
    assert "exact basis: 3 terms" in result.output
    assert "conv-like: 3 terms keep sampled rows within" in " ".join(result.output.split())
    assert {one.name for one in tmp_path.glob("p*.png")} == {"p-0.png", "p-1.png"}
    document = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert document["schema"] == "refattn-decompose/1"
    assert [one["head"] for one in document["heads"]] == [[0], [1]]
    assert all(one["terms_needed"] == 3 for one in document["heads"])


def test_one_head_can_be_chosen(tmp_path):
    path = structured(tmp_path, lead=(2,))[0]
    result = runner.invoke(app, ["decompose", str(path), "--head", "1", "--length", "20"])
    assert result.exit_code == 0
    assert "head 1: n = 20" in result.output
    assert "head 0" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npz"], "missing.npz: No such file"),
        (["heads.npz", "--head", "7"], "head: 7 came"),
        (["heads.npz", "--tolerance", "0"], "tolerance: 0.0 came"),
        (["heads.npz", "--length", "151"], "length: 151 came"),
        (["heads.npz", "--matrix", "weights"], "one of 'logits', 'attention' was wanted"),
        (["heads.npz", "--json", "nowhere/d.json"], "does not exist"),
        (["heads.npz", "--scale", "nan"], "scale: nan came"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_done_is_one_clear_error_and_status_2(tmp_path, monkeypatch, arguments, message):
    structured(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["decompose", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3], ids="n={}".format)
def test_the_smallest_matrices(tmp_path, n):
    np.save(tmp_path / "h.npy", np.ones((n, n)))
    (head,) = read_heads(tmp_path / "h.npy")[1]
    report = measure_head(head)
    assert report.document["exact_terms"] == 1
    assert picture(report, "h").startswith(b"\x89PNG")


def test_zero_logits_have_no_terms_and_no_error(tmp_path):
    np.save(tmp_path / "h.npy", np.zeros((5, 5)))
    (head,) = read_heads(tmp_path / "h.npy")[1]
    assert measure_head(head).document["exact_terms"] == 0
