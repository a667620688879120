"""Files that others wrote: what is right is read, what is wrong or hostile is one clear error, and nothing is run."""

import io
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from refattn import PromotionWarning, dense_attention
from refattn.decomposition import read_heads
from refattn.decomposition.measure import measure_head, softmax
from refattn.decomposition.reading import MOST_COLUMNS
from refattn.testing import attention_inputs, rope_structured


def save(folder, **arrays):
    path = folder / "heads.npz"
    np.savez(path, **arrays)
    return path


def header_that_claims(shape, descr="<f8", content=b"\0" * 16):
    """A ``.npy`` whose header says more than there is."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=["f16", "f32", "f64"])
def test_grouped_heads_are_those_of_attention(tmp_path, dtype):
    q, k, v = (x.astype(dtype) for x in attention_inputs(20, 4, seed=0, lead=(2, 6), kv_lead=(2, 3)))
    count, heads = read_heads(save(tmp_path, q=q, k=k, v=v))
    heads = list(heads)
    assert count == len(heads) == 12
    expected = dense_attention(*(x.astype(np.float64) for x in (q, k, v)))
    for head in heads:
        np.testing.assert_allclose(softmax(head.logits) @ head.v, expected[head.index], rtol=0, atol=1e-13)
        np.testing.assert_allclose(np.tril(head.q @ head.k.T * head.scale), head.logits, rtol=0, atol=1e-13)


DTYPES = [(np.float16, 2.0**-11), (np.float32, 2.0**-24), (np.float64, 2.0**-53)]


@pytest.mark.parametrize(("dtype", "unit"), DTYPES, ids=["f16", "f32", "f64"])
def test_rounding_is_judged_by_the_numbers_of_the_file(tmp_path, dtype, unit):
    q, k, v, _ = rope_structured(60, 8, starts=[0, 20, 40], seed=0)
    (head,) = read_heads(save(tmp_path, q=q.astype(dtype), k=k.astype(dtype), v=v))[1]
    assert head.unit == unit
    assert measure_head(head, terms=4).document["exact_terms"] == 3  # up to the rounding of q and k
    np.save(tmp_path / "h.npy", np.eye(3, dtype=dtype))
    assert next(read_heads(tmp_path / "h.npy")[1]).unit == unit


def test_integers_are_exact_and_the_coarsest_array_counts(tmp_path):
    q = np.ones((4, 2))
    with pytest.warns(PromotionWarning):
        (head,) = read_heads(save(tmp_path, q=q.astype(np.int16), k=q))[1]
    assert head.unit == 2.0**-53
    (head,) = read_heads(save(tmp_path, q=q, k=q.astype(np.float32)))[1]
    assert head.unit == 2.0**-24


def test_values_may_be_missing_and_length_cuts(tmp_path):
    q, k, _ = attention_inputs(20, 4, seed=1)
    count, heads = read_heads(save(tmp_path, q=q, k=k, other=np.ones(3)), length=7, scale=2.0)
    (head,) = heads
    assert count == 1
    assert head.v is None
    np.testing.assert_allclose(head.logits, np.tril(q[:7] @ k[:7].T * 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_a_matrix_comes_from_npy_and_npz_in_any_order(tmp_path, order, compressed):
    h = np.asarray(np.random.default_rng(0).standard_normal((6, 6)), order=order)
    np.save(tmp_path / "h.npy", h)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "h.npz", h=h)
    for name in ("h.npy", "h.npz"):
        (head,) = read_heads(tmp_path / name)[1]
        np.testing.assert_array_equal(head.logits, np.tril(h))


def test_attention_weights_become_logarithms(tmp_path):
    h = np.tril(np.random.default_rng(0).standard_normal((9, 9)))
    np.save(tmp_path / "a.npy", softmax(h))
    (head,) = read_heads(tmp_path / "a.npy", matrix="attention")[1]
    np.testing.assert_allclose(softmax(head.logits), softmax(h), rtol=0, atol=1e-15)


def test_a_weight_of_zero_has_no_logarithm(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3))
    with pytest.raises(ValueError, match=r"h: weight 0.0 at \(1, 0\)"):
        next(read_heads(tmp_path / "a.npy", matrix="attention")[1])


@pytest.mark.parametrize("shape", [(1 << 62,), (1 << 31, 1 << 31), (1000, 1000)], ids=str)
@pytest.mark.parametrize("archive", [False, True], ids=["npy", "npz"])
def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path, shape, archive):
    content = header_that_claims(shape)
    path = tmp_path / ("x.npz" if archive else "x.npy")
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("h.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or altered"):
        read_heads(path)


def test_an_archive_that_expands_beyond_memory_is_refused_before(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", h=np.zeros((4000, 4000)))
    monkeypatch.setattr("refattn._memory.available_bytes", lambda: 2.0**24)
    with pytest.raises(MemoryError, match="h: about 122 MiB"):
        read_heads(tmp_path / "x.npz")


def test_objects_are_refused_and_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    array = np.empty((2, 2), dtype=object)
    array[:] = Trap()
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", h=array)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="Python objects came"):
            read_heads(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x09\x00", b"text"], ids=repr)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_other_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.np.*cannot be read"):
        read_heads(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"q": np.ones((4, 2))}, ValueError, "arrays q came, q and k"),
        ({"x": np.ones((4, 2))}, ValueError, "arrays of other names came"),
        ({"q": np.ones((4, 2)), "k": np.ones((4, 3))}, ValueError, "k: last axis 3"),
        ({"q": np.ones((4, 2)), "k": np.ones((5, 2))}, ValueError, "k: 5 rows came"),
        ({"q": np.ones((4, 2)), "k": np.ones((4, 2)), "v": np.ones((3, 2))}, ValueError, "v: 3 rows"),
        ({"q": np.ones(4), "k": np.ones((4, 2))}, ValueError, r"q: shape \(4,\)"),
        ({"q": np.ones((0, 2)), "k": np.ones((0, 2))}, ValueError, "empty axis"),
        ({"q": np.ones((4, 2), complex), "k": np.ones((4, 2))}, TypeError, "q: dtype complex128"),
        ({"q": np.full((4, 2), "a"), "k": np.ones((4, 2))}, TypeError, "q: dtype <U1"),
        ({"q": np.full((4, 2), np.nan), "k": np.ones((4, 2))}, ValueError, "q: nan at index"),
        ({"q": np.full((4, 2), 1e200), "k": np.full((4, 2), 1e200)}, ValueError, "q, k: a logit of head"),
        ({"h": np.ones((4, 3))}, ValueError, r"h: shape \(4, 3\)"),
        ({"h": np.full((4, 4), np.inf)}, ValueError, "h: inf at index"),
        ({"h": np.ones((1, MOST_COLUMNS + 1, MOST_COLUMNS + 1), np.float16)}, ValueError, "h: n = 4097 came, at most"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_arrays_that_do_not_serve_are_named(tmp_path, arrays, error, message):
    with pytest.raises(error, match=message):
        list(read_heads(save(tmp_path, **arrays))[1])


@pytest.mark.parametrize("length", [0, 5], ids="length={}".format)
def test_a_length_beyond_the_data_is_refused(tmp_path, length):
    with pytest.raises(ValueError, match=f"length: {length} came, at least 1 and at most 4"):
        read_heads(save(tmp_path, h=np.ones((4, 4))), length=length)


def test_every_matrix_of_a_stack_is_a_head_and_is_its_own_product(tmp_path):
    h = np.tril(np.random.default_rng(0).standard_normal((2, 3, 6, 6)))
    np.save(tmp_path / "h.npy", h)
    count, heads = read_heads(tmp_path / "h.npy")
    heads = list(heads)
    assert count == len(heads) == 6
    for head in heads:
        np.testing.assert_array_equal(head.logits, h[head.index])
        np.testing.assert_array_equal(np.tril(head.q @ head.k.T * head.scale), head.logits)


def test_the_residual_of_a_segment_is_the_root_mean_square_of_its_causal_entries(tmp_path):
    q, k, _ = attention_inputs(20, 4, seed=1)
    (head,) = read_heads(save(tmp_path, q=q, k=k))[1]
    report = measure_head(head, terms=4)
    causal = np.tri(20, dtype=bool)
    for segment in report.document["segments"]:
        columns = slice(segment["first_column"], segment["first_column"] + segment["columns"])
        residuals = report.residual[:, columns][causal[:, columns]]
        assert segment["rms_residual"] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-9)
